"""One trained classifier under any missing tables: `evaluate` one of them, `grid` all types, rates and seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mora.data.dataset import Dataset
from mora.data.missing import COMPLETE, IMAGE_MISSING, KINDS, TEXT_MISSING, missing_table
from mora.evaluation.embeddings import Embeddings, embed
from mora.evaluation.metrics import Metric

if TYPE_CHECKING:
    from mora.training.run import LoadedRun

NOTHING, FROM_FILE = "none", "table"
RATES, SEEDS = (0.5, 0.7, 0.9), (0, 1, 2)


class Condition(NamedTuple):
    """What is taken away: `kind` "text", "image" or "both" from a share `rate` of the image rows; or "none"."""

    kind: str
    rate: float

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read "both:0.7" or "none"; ValueError for anything else."""
        kind, _, rate = text.partition(":")
        if text == NOTHING:
            return cls(NOTHING, 0.0)
        try:
            return cls(kind, float(rate)).checked()
        except ValueError as error:
            raise ValueError(
                f"missing: got {text!r}, expected 'none', or text, image or both with the share of rows that lack "
                "it, such as 'both:0.7'"
            ) from error

    def checked(self) -> Condition:
        """Itself; ValueError for an unknown kind or a rate outside [0, 1]."""
        if self.kind not in KINDS:
            raise ValueError(f"types: got {self.kind!r}, expected one of {', '.join(map(repr, KINDS))}")
        if not 0.0 <= self.rate <= 1.0:
            raise ValueError(f"rates: got {self.rate}, expected a share between 0 and 1")
        return self

    def __str__(self) -> str:
        return NOTHING if self.kind == NOTHING else f"{self.kind}:{self.rate:g}"


@dataclass(frozen=True)
class Result:
    """One cell: what one model scored on one split under one table.

    Attributes:
        model: label of the run.
        method: how it was trained.
        data: name of the data set.
        split: of the data set.
        kind: what was taken away: "none", "text", "image", "both"; "table" for a table of your own.
        rate: share of image rows it was taken from; of a table of your own, the share it says.
        seed: of the table; None where none was drawn.
        rows: samples scored; `complete`, `text_missing` and `image_missing` add up to it, natural absence included.
        metric: name of the headline figure.
        figures: every figure by name, a share of 1.
        table_sha256: of what each sample lacked.
    """

    model: str
    method: str
    data: str
    split: str
    kind: str
    rate: float
    seed: int | None
    rows: int
    complete: int
    text_missing: int
    image_missing: int
    metric: str
    figures: dict[str, float]
    table_sha256: str

    @property
    def value(self) -> float:
        """The headline figure."""
        return self.figures[self.metric]

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return asdict(self)


def evaluate(
    run: LoadedRun,
    dataset: Dataset,
    missing: str | Condition = NOTHING,
    seed: int = 0,
    table: Tensor | None = None,
    label: str | None = None,
    batch: int = 64,
    workers: int = 0,
) -> Result:
    """Score a trained classifier on one split with one part of it missing.

    Args:
        run: from `mora.training.run.load_run`.
        dataset: one split, with the classes of the run.
        missing: what is taken away in addition to natural absence, "both:0.7"; a rate counts what is MISSING.
        seed: of the missing table.
        table: a missing table of your own, one value per image row, instead of `missing` and `seed`.
        label: name of the model in the result; None takes the method's.
        batch: samples at a time.
        workers: processes that read and preprocess.

    Raises ValueError for other classes than the run's, a wrong condition or table, an unreadable image, and where the
    metric is not defined.
    """
    if table is not None:
        return cells(run, dataset, [], (seed,), table, label, batch, workers)[0]
    condition = Condition.parse(missing) if isinstance(missing, str) else missing
    return cells(run, dataset, [condition], (seed,), None, label, batch, workers)[0]


def grid(
    run: LoadedRun,
    dataset: Dataset,
    types: Sequence[str] = KINDS,
    rates: Sequence[float] = RATES,
    seeds: Sequence[int] = SEEDS,
    label: str | None = None,
    batch: int = 64,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[Result]:
    """One checkpoint with nothing taken away, then under every type, rate and seed, for one pass over the towers.

    Arguments and errors are those of `evaluate`; `progress` is told the number of samples embedded.
    """
    conditions = [Condition(NOTHING, 0.0), *(Condition(kind, rate) for kind in types for rate in rates)]
    return cells(run, dataset, conditions, seeds, None, label, batch, workers, progress)


def cells(
    run: LoadedRun,
    dataset: Dataset,
    conditions: Iterable[Condition],
    seeds: Sequence[int],
    table: Tensor | None = None,
    label: str | None = None,
    batch: int = 64,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[Result]:
    """A result per condition and seed, and one for `table`; "none" has no seed."""
    conditions = [c if c.kind == NOTHING else c.checked() for c in conditions]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: got {list(seeds)}, expected at least one, each once")
    check_fits(run, dataset)
    embeddings = embed(run, dataset, batch, workers, progress)
    found = []
    for condition in conditions:
        for seed in (None,) if condition.kind == NOTHING else seeds:
            drawn = draw(dataset, condition, seed or 0)
            found.append(score(run, dataset, embeddings, drawn, condition, seed, label))
    if table is not None:
        condition = Condition(FROM_FILE, float((table != COMPLETE).double().mean()))
        found.append(score(run, dataset, embeddings, table, condition, None, label))
    return found


def draw(dataset: Dataset, condition: Condition, seed: int) -> Tensor:
    """The missing table of a condition, one value per image row."""
    if condition.kind == NOTHING:
        return torch.zeros(dataset.rows)
    return missing_table(dataset.rows, condition.rate, condition.kind, seed)


def score(
    run: LoadedRun,
    dataset: Dataset,
    embeddings: Embeddings,
    table: Tensor,
    condition: Condition,
    seed: int | None,
    label: str | None,
) -> Result:
    """The result of one table."""
    lacks = embeddings.lacks(table)
    metric = Metric(run.metric, len(run.classes), run.multi_label)
    for index, logits in embeddings.logits(lacks):
        groups = None if embeddings.groups is None else embeddings.groups[index]
        metric.update(logits, embeddings.labels[index], groups)
    counts = {value: int((lacks == value).sum()) for value in (COMPLETE, TEXT_MISSING, IMAGE_MISSING)}
    return Result(
        model=label or run.method,
        method=run.method,
        data=dataset.name,
        split=dataset.split,
        kind=condition.kind,
        rate=condition.rate,
        seed=seed,
        rows=len(lacks),
        complete=counts[COMPLETE],
        text_missing=counts[TEXT_MISSING],
        image_missing=counts[IMAGE_MISSING],
        metric=run.metric,
        figures=metric.compute(),
        table_sha256=hashlib.sha256(lacks.to(torch.int8).numpy().tobytes()).hexdigest(),
    )


def check_fits(run: LoadedRun, dataset: Dataset) -> None:
    """Raise ValueError unless the data set has rows, and the run's classes in its order."""
    if not len(dataset):
        raise ValueError(f"data: {dataset.name} has no rows in split {dataset.split!r}, expected at least one")
    if dataset.multi_label != run.multi_label:
        kinds = {True: "several labels per row", False: "one label per row"}
        raise ValueError(
            f"data: {dataset.name} has {kinds[dataset.multi_label]}, expected {kinds[run.multi_label]}, as the model"
        )
    if tuple(dataset.classes) != tuple(run.classes):
        unknown = [name for name in dataset.classes if name not in run.classes]
        got = f"{unknown[0]!r}, unknown to the model" if unknown else f"{len(dataset.classes)} in another order"
        raise ValueError(f"data: classes of {dataset.name}: got {got}, expected the model's {len(run.classes)}")
