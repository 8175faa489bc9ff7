"""What a finished demo knows, and what its numbers say."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from mora.demo.cost import Cost
from mora.demo.items import Item
from mora.demo.methods import LABELS
from mora.demo.runs import KINDS, Run
from mora.demo.settings import Settings
from mora.demo.tasks import TASKS
from mora.evaluation.grid import NOTHING
from mora.evaluation.tables import Summary
from mora.metrics import Spread, spread

HEADINGS = {NOTHING: "nothing missing", "image": "images missing", "text": "texts missing", "both": "either missing"}


@dataclass(frozen=True)
class TaskOutcome:
    """One task: its runs, and what they scored.

    Attributes:
        settings: of the demo.
        name: of the task.
        runs: trained with a share missing, and trained complete.
        sizes: rows by part.
        classes, majority, head_parameters: of the data; the share of the most frequent training class in the test part.
    """

    settings: Settings
    name: str
    runs: list[Run]
    sizes: dict[str, int] = field(default_factory=dict)
    classes: int = 0
    majority: float = 0.0
    head_parameters: int = 0

    @property
    def title(self) -> str:
        """A few words."""
        return TASKS[self.name].title

    @property
    def methods(self) -> list[str]:
        """Those that were trained, in the order of the tables."""
        return list(dict.fromkeys(run.method for run in self.runs if not run.complete))

    @property
    def columns(self) -> dict[str, str]:
        """The conditions of the table, and how they are called."""
        kinds = (NOTHING, *KINDS) if self.settings.rate else (NOTHING,)
        return {kind: HEADINGS[kind] for kind in kinds}

    @cached_property
    def summaries(self) -> dict[bool, Summary]:
        """Every figure over the seeds, by whether the runs were trained complete."""
        parts = {complete: [r for run in self.runs if run.complete == complete for r in run.results]
                 for complete in (False, True)}  # fmt: skip
        return {complete: Summary(results) for complete, results in parts.items() if results}

    def of(self, method: str, complete: bool = False) -> list[Run]:
        """The runs of one method."""
        return [run for run in self.runs if run.method == method and run.complete == complete]

    @property
    def seeds(self) -> int:
        """How many runs a method has."""
        return len(self.of(self.methods[0]))

    def test(
        self, method: str, kind: str, rate: float | None = None, figure: str | None = None, complete: bool = False
    ) -> Spread:
        """One figure (None: accuracy) of one method under one condition (rate None: the one it was trained with)."""
        share = 0.0 if kind == NOTHING else self.settings.rate if rate is None else rate
        found = self.summaries[complete].at(LABELS[method], kind, share, figure)
        assert found is not None
        return found

    def paired(self, method: str, other: str, kind: str | None) -> Spread:
        """`method` minus `other` on the test part, seed by seed: both saw the same missing rows, head and order.

        `kind` None is the mean of all columns.
        """
        kinds = list(self.columns) if kind is None else [kind]
        gaps = []
        for one in kinds:
            rate = self.settings.rate if one != NOTHING else 0.0
            ours, theirs = (self.summaries[False].cells[LABELS[name], one, rate] for name in (method, other))
            gaps.append([a.value - b.value for a, b in zip(ours, theirs, strict=True)])
        return spread([sum(column) / len(column) for column in zip(*gaps, strict=True)])


@dataclass(frozen=True)
class Outcome:
    """Everything a finished demo knows, from which every file is written."""

    settings: Settings
    command: str
    started: datetime
    seconds: dict[str, float]
    total_parameters: int
    tasks: list[TaskOutcome]
    merged: dict[str, Any] | None = None
    merged_run: Run | None = None
    items: list[Item] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)

    @property
    def runs(self) -> list[Run]:
        """Of every task."""
        return [run for task in self.tasks for run in task.runs]


def remarks(task: TaskOutcome) -> list[str]:
    """What a task's numbers say: MoRA beside every other method, then the sentence of what is certain."""
    if "mora" not in task.methods or len(task.methods) < 2:
        return []
    lines: list[str] = []
    certain: list[str] = []
    level: list[str] = []
    for other in (method for method in task.methods if method != "mora"):
        gaps = {heading: task.paired("mora", other, kind) for kind, heading in task.columns.items()}
        points = ", ".join(f"{100 * gap.mean:+.1f} with {heading}" for heading, gap in gaps.items())
        lines.append(f"MoRA minus {LABELS[other]}, paired by seed, points: {points}.")
        gap = task.paired("mora", other, None)
        word = "above" if gap.mean > 0 else "below"
        said = f"{word} {LABELS[other]} by {abs(100 * gap.mean):.1f}"
        if task.seeds > 1:
            said += f" ± {100 * gap.deviation:.1f}"
        (certain if abs(gap.mean) > gap.deviation and task.seeds > 1 else level).append(said)
    return [*lines, sentence(task.seeds, certain, level)]


def sentence(seeds: int, certain: list[str], level: list[str]) -> str:
    """What is certain and what is within the spread, of the means over the columns."""
    if seeds < 2:
        return f"Mean of the columns, one seed, of which no spread is known: MoRA is {listed(level)} points."
    parts = []
    if certain:
        parts.append(f"beyond the spread of {seeds} seeds MoRA is {listed(certain)} points")
    if level:
        parts.append(f"within it MoRA is {listed(level)}")
    return f"Mean of the columns: {'; '.join(parts)}."


def listed(words: list[str]) -> str:
    """ "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def count(number: int, noun: str) -> str:
    """ "1 seed", "3 seeds"."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
