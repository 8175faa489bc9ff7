"""What a sweep found: settings in the order of their validation, the winner, and what the numbers say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mora.evaluation.tables import FIGURES, Table
from mora.fields.per_tower import as_lists
from mora.metrics import Spread, spread
from mora.sweeping.cell import DONE, FAILED, PRUNED, Row
from mora.sweeping.plan import Plan
from mora.sweeping.space import word, words
from mora.system.messages import listed, one_line

SHOWN = 20  # rows of the table in the terminal
WIDTH = 80
LONGEST = 160  # letters of an error in the terminal


@dataclass(frozen=True)
class Setting:
    """One setting with its runs, a row per seed.

    Attributes:
        number: from 1, in the order in which they were asked for; its runs are `runs/{number}-seed{seed}`.
        values: by field.
        rows: of its cells.
        metric: what the data is scored by.
        seeds: how many runs a setting needs to count.
    """

    number: int
    values: dict[str, Any]
    rows: list[Row]
    metric: str
    seeds: int

    @property
    def state(self) -> str:
        """ "failed" or "pruned" if one of its runs is, else "done"."""
        states = [row.state for row in self.rows]
        return FAILED if FAILED in states else PRUNED if PRUNED in states else DONE

    @property
    def counts(self) -> bool:
        """Whether every run is done, so that it can win."""
        return self.state == DONE and len(self.rows) == self.seeds

    @property
    def scores(self) -> list[float]:
        """Best validation of every run that is done, by seed."""
        return [row.validation[self.metric] for row in self.rows if row.validation is not None]

    @property
    def spread(self) -> Spread | None:
        """Mean and standard deviation of the best validation over the seeds; None where no run is done."""
        return spread(self.scores) if self.scores else None

    @property
    def error(self) -> str | None:
        """Why its first run that is not done is not."""
        return next((row.error for row in self.rows if row.error is not None), None)

    def behind(self, other: Setting) -> Spread:
        """How much `other` is better, paired by seed: both saw the same missing rows, head and order."""
        return spread([theirs - ours for theirs, ours in zip(other.scores, self.scores, strict=True)])


@dataclass(frozen=True)
class Outcome:
    """What a sweep found; metrics are shares of 1.

    Attributes:
        plan: what was to be done.
        metric: what the data is scored by.
        rows: a cell each, by setting and seed.
        data: source, name, classes, rows and fingerprints of training and validation.
        test: metrics of the winner on the test split, by seed; None before it was measured, or where there is none.
        seconds: of training, by the folder of a cell.
    """

    plan: Plan
    metric: str
    rows: list[Row]
    data: dict[str, Any]
    test: dict[int, dict[str, float]] | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def settings(self) -> list[Setting]:
        """Every setting, in the order in which they were asked for."""
        by_number: dict[int, list[Row]] = {}
        for row in self.rows:
            by_number.setdefault(row.setting, []).append(row)
        return [
            Setting(number, rows[0].values, rows, self.metric, len(self.plan.seeds))
            for number, rows in sorted(by_number.items())
        ]

    @property
    def ranked(self) -> list[Setting]:
        """The settings that count, the highest mean first; of equal ones the one that was asked for first."""
        return sorted(
            (setting for setting in self.settings if setting.counts),
            key=lambda setting: -sum(setting.scores) / len(setting.scores),
        )

    @property
    def winner(self) -> Setting | None:
        """The setting with the highest mean of validation; None where no setting is done."""
        return next(iter(self.ranked), None)

    @property
    def best_run(self) -> Path | None:
        """The run folder of the winner with the highest validation."""
        if self.winner is None:
            return None
        scores = dict(zip((row.seed for row in self.winner.rows), self.winner.scores, strict=True))
        return self.plan.cell_folder(self.winner.number, max(scores, key=scores.__getitem__))

    def tested(self) -> Spread | None:
        """The headline figure of the winner on the test split over the seeds."""
        return spread([figures[self.metric] for figures in self.test.values()]) if self.test else None

    def to_dict(self) -> dict[str, Any]:
        """What sweep.json says of it, as JSON types."""
        winner = self.winner
        return {
            "metric": self.metric,
            "data": self.data,
            "rows": [{**vars(row), "values": as_values(row.values)} for row in self.rows],
            "settings": [
                {
                    "setting": setting.number,
                    "values": as_values(setting.values),
                    "state": setting.state,
                    **({"mean": of.mean, "deviation": of.deviation} if (of := setting.spread) else {}),
                }
                for setting in self.settings
            ],
            "winner": None
            if winner is None
            else {
                "setting": winner.number,
                "values": as_values(winner.values),
                "test": None if self.test is None else {str(seed): found for seed, found in self.test.items()},
            },
            "seconds": self.seconds,
        }


def as_values(values: dict[str, Any]) -> dict[str, Any]:
    """A setting as JSON types."""
    return {name: as_lists(value) for name, value in values.items()}


def table(outcome: Outcome, most: int = SHOWN) -> Table:
    """Settings that count, the best first, then the others; at most `most`."""
    ranked = outcome.ranked
    others = [setting for setting in outcome.settings if not setting.counts]
    names = list(outcome.plan.fields)
    rows = []
    for setting in [*ranked, *others][:most]:
        values = [word(setting.values[name]) for name in names]
        shown = percent(setting.spread, setting.seeds) if setting.counts else setting.state
        gap = percent(setting.behind(ranked[0]), setting.seeds) if setting.counts and setting is not ranked[0] else ""
        epochs = ", ".join(str(row.best_epoch) for row in setting.rows if row.best_epoch) if setting.counts else ""
        rows.append([str(setting.number), *values, shown, gap, epochs])
    headings = ["setting", *names, "validation", "behind", "best epochs"]
    figure = FIGURES[outcome.metric]
    over = f", mean ± standard deviation over {len(outcome.plan.seeds)} seeds" if len(outcome.plan.seeds) > 1 else ""
    made = Table(f"Validation {figure} in %{over}", headings, rows, {(0, len(names) + 1)} if ranked else set(), 0)
    return made if width(made) <= WIDTH else folded(made, names)


def folded(made: Table, names: Sequence[str]) -> Table:
    """The table with all values of a setting in one column, which is wrapped where it is too long."""
    rows = []
    for row in made.rows:
        values = dict(zip(names, row[1 : 1 + len(names)], strict=True))
        rows.append([f"{row[0]}: {words(values)}", *row[1 + len(names) :]])
    best = {(y, 1) for y, _ in made.best}
    return Table(made.title, ["setting", "validation", "behind", "best epochs"], rows, best, 1)


def width(made: Table) -> int:
    """Letters of a line of the table in the terminal."""
    columns = zip(made.headings, *made.rows, strict=True)
    return sum(1 + max(len(text.replace(" ± ", "±")) for text in column) for column in columns)


def percent(value: Spread | None, seeds: int) -> str:
    """ "61.2 ± 0.4"; without the spread where there is one seed."""
    if value is None:
        return ""
    return f"{100 * value.mean:.1f}" + (f" ± {100 * value.deviation:.1f}" if seeds > 1 else "")


def remarks(outcome: Outcome) -> list[str]:
    """What the numbers say, a sentence or two each."""
    lines, winner = [], outcome.winner
    seeds, figure = len(outcome.plan.seeds), FIGURES[outcome.metric]
    if winner is not None:
        over = f" over {seeds} seeds" if seeds > 1 else ""
        lines.append(
            f"Best on validation: setting {winner.number} ({words(winner.values)}), {figure} "
            f"{percent(winner.spread, seeds)} %{over}. It was chosen by that figure, which flatters it."
        )
        if (tested := outcome.tested()) is not None:
            lines.append(f"On the test split, which no other setting has seen: {percent(tested, seeds)} %.")
        lines += within(outcome, winner)
    for state, what in ((FAILED, "failed"), (PRUNED, "ended early")):
        found = [setting for setting in outcome.settings if setting.state == state]
        if found:
            first = one_line(found[0].error or "")
            said = first if len(first) <= LONGEST else f"{first[:LONGEST]} ..."
            lines.append(f"{what.capitalize()}: {numbered(found)}. Setting {found[0].number}: {said}")
    return lines


def within(outcome: Outcome, winner: Setting) -> list[str]:
    """Which settings the seeds cannot tell from the winner."""
    others = outcome.ranked[1:]
    if not others:
        return []
    if winner.seeds < 2:
        return ["One seed: whether the order of the settings would be another with other seeds is not known."]
    gaps = [(setting, setting.behind(winner)) for setting in others]
    close = [setting for setting, gap in gaps if gap.mean <= gap.deviation]
    if not close:
        return ["It is ahead of every other setting by more than the spread, paired by seed."]
    return [f"Not behind it by more than the spread, paired by seed: {numbered(close)} of {len(others)} others."]


def numbered(settings: Sequence[Setting]) -> str:
    """ "setting 3", "settings 1, 2"."""
    return f"setting{'' if len(settings) == 1 else 's'} {listed(setting.number for setting in settings)}"
