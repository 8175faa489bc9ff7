"""What a finished demo knows, and what its numbers say."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from mora.demo.runs import Run, conditions
from mora.demo.settings import LABELS, Settings
from mora.evaluation.grid import NOTHING, Result
from mora.evaluation.tables import Summary
from mora.metrics import Spread, spread

HEADINGS = {NOTHING: "nothing missing", "image": "images missing", "text": "texts missing", "both": "either missing"}


@dataclass(frozen=True)
class Outcome:
    """Everything a finished demo knows, from which every file is written."""

    settings: Settings
    command: str
    started: datetime
    seconds: dict[str, float]
    sizes: dict[str, int]
    classes: int
    majority: float
    head_parameters: int
    total_parameters: int
    runs: list[Run]
    merged: dict[str, Any] | None
    merged_run: Run | None

    @property
    def results(self) -> list[Result]:
        """Every cell of every run, a model being a method."""
        return [result for run in self.runs for result in run.results]

    @cached_property
    def summary(self) -> Summary:
        """Every figure of every method and condition over the seeds."""
        return Summary(self.results)

    @property
    def columns(self) -> dict[str, str]:
        """The conditions of the test part, and how they are called."""
        kinds = [missing.kind if missing.rate else NOTHING for missing in conditions(self.settings)]
        return {kind: HEADINGS[kind] for kind in kinds}

    def test(self, method: str, kind: str, figure: str | None = None) -> Spread:
        """One figure (None: accuracy) of one method under one condition."""
        found = self.summary.at(LABELS[method], kind, self.settings.rate if kind != NOTHING else 0.0, figure)
        assert found is not None
        return found

    def of(self, method: str) -> list[Run]:
        """The runs of one method."""
        return [run for run in self.runs if run.method == method]

    def seconds_of(self, method: str) -> float:
        """How long a run of a method took, on average."""
        return spread([run.seconds for run in self.of(method)]).mean

    def paired(self, method: str, other: str, kind: str) -> Spread:
        """`method` minus `other` on the test part, seed by seed: both saw the same missing rows, head and order."""
        rate = self.settings.rate if kind != NOTHING else 0.0
        ours, theirs = (self.summary.cells[LABELS[name], kind, rate] for name in (method, other))
        return spread([one.value - two.value for one, two in zip(ours, theirs, strict=True)])


def remarks(outcome: Outcome) -> list[str]:
    """What the numbers say, one sentence or two each."""
    lines = []
    for kind, heading in outcome.columns.items():
        ranked = sorted(outcome.settings.methods, key=lambda method: -outcome.test(method, kind).mean)
        line = f"{heading.capitalize()}: {LABELS[ranked[0]]} is highest ({outcome.test(ranked[0], kind)} %)"
        if len(ranked) > 1:
            gap = outcome.paired(ranked[0], ranked[1], kind)
            said = verdict(gap, outcome.settings.seeds)
            line += f", {said} {LABELS[ranked[1]]} ({outcome.test(ranked[1], kind)} %)"
        lines.append(line + ".")
    return lines + comparison(outcome)


def comparison(outcome: Outcome) -> list[str]:
    """MoRA against every other method, in words."""
    present, columns = outcome.settings.methods, outcome.columns
    if "mora" not in present:
        return []
    lines = []
    for other in (method for method in present if method != "mora"):
        gaps = {name: outcome.paired("mora", other, name) for name in columns}
        if outcome.settings.seeds < 2:
            points = ", ".join(f"{100 * gap.mean:+.1f} with {columns[name]}" for name, gap in gaps.items())
            lines.append(f"MoRA minus {LABELS[other]}, one seed: {points}.")
            continue
        words: dict[str, list[str]] = {"better": [], "worse": [], "level": []}
        for name, gap in gaps.items():
            word = "level" if abs(gap.mean) <= gap.deviation else "better" if gap.mean > 0 else "worse"
            words[word].append(columns[name])
        said = [f"{word} with {listed(where)}" for word, where in words.items() if where and word != "level"]
        if words["level"]:
            said.append(f"no difference beyond the spread with {listed(words['level'])}")
        lines.append(f"MoRA against {LABELS[other]}: {'; '.join(said)}.")
    rivals = [method for method in ("lora", "dora") if method in present]
    if rivals:
        means = {name: sum(outcome.test(name, kind).mean for kind in columns) / len(columns) for name in present}
        best = max(rivals, key=means.__getitem__)
        relation = "above" if means["mora"] > means[best] else "not above"
        lines.append(
            f"Averaged over the columns MoRA ({100 * means['mora']:.1f} %) is {relation} the better of its "
            f"rivals, {LABELS[best]} ({100 * means[best]:.1f} %), in this setting."
        )
    return lines


def verdict(gap: Spread, seeds: int) -> str:
    """How a lead reads."""
    points = f"{100 * gap.mean:.1f} ± {100 * gap.deviation:.1f} points paired by seed"
    if seeds < 2:
        return f"{100 * gap.mean:.1f} points (one seed, so no spread is known) above"
    if gap.mean > gap.deviation:
        return f"by more than the spread ({points}) above"
    return f"but not by more than the spread ({points}) above"


def listed(words: list[str]) -> str:
    """ "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def count(number: int, noun: str) -> str:
    """ "1 seed", "3 seeds"."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
