"""One trained classifier under any missing tables: `evaluate` one of them, `grid` all types, rates and seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from mora.data.dataset import Dataset
from mora.data.missing import KINDS
from mora.data.policies import BOTH, EITHER, Missing
from mora.data.presence import PAIR, Presence
from mora.data.tables import MissingTable, draw_table, presence_of
from mora.evaluation.embeddings import Embeddings, embed
from mora.metrics import Metric
from mora.patterns import patterns_of, scores_by_pattern
from mora.savings import PrefixCache
from mora.system.files import digest

if TYPE_CHECKING:
    from mora.runs.run import LoadedRun

NOTHING = "none"
RATES, SEEDS = (0.5, 0.7, 0.9), (0, 1, 2)


@dataclass(frozen=True)
class Result:
    """One cell: what one model scored on one split under one table.

    Attributes:
        model: label of the run.
        method: how it was trained.
        data: name of the data set.
        split: of the data set.
        kind: what was taken away: "none", "text", "image" or "both"; of other modalities also several, "audio+text",
            "either" (exactly one), "any", or rates by modality, "audio:0.7,image:0.3".
        rate: share of image rows it was taken from; see `mora.data.Missing`.
        both_ratio: under "both", the share of these that lost their image and not their text.
        seed: of the missing table; None where nothing was taken, and for published files, which do not tell.
        table: file the missing table was read from; None for one that was drawn.
        rows: samples scored; `complete`, `text_missing` and `image_missing` add up to it, natural absence included.
        metric: name of the headline figure.
        figures: every figure by name, a share of 1.
        lacks_sha256: of what each sample lacked.
        patterns: by presence pattern ("complete", "image only", "text only"), its "rows" and their figures.
        further: of other modalities than image and text, the samples that lack each; the numbers above overlap.
    """

    model: str
    method: str
    data: str
    split: str
    kind: str
    rate: float
    both_ratio: float | None
    seed: int | None
    table: str | None
    rows: int
    complete: int
    text_missing: int
    image_missing: int
    metric: str
    figures: dict[str, float]
    lacks_sha256: str
    patterns: dict[str, dict[str, float]] = field(default_factory=dict)
    further: dict[str, int] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The headline figure."""
        return self.figures[self.metric]

    @property
    def condition(self) -> str:
        """What was taken away, as a word: the kind, with the share of images where it is not a half."""
        return self.kind if self.both_ratio in (None, 0.5) else f"{self.kind}:{self.both_ratio:g}"

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types; of image and text alone without `further`."""
        return {name: value for name, value in asdict(self).items() if name != "further" or value}


def evaluate(
    run: LoadedRun,
    dataset: Dataset,
    missing: str | Missing = "none",
    seed: int = 0,
    table: MissingTable | None = None,
    label: str | None = None,
    batch: int = 64,
    workers: int = 0,
) -> Result:
    """Score a trained classifier on one split with one part of it missing.

    Args:
        run: from `mora.runs.run.load_run`.
        dataset: one split, with the classes of the run.
        missing: what is taken away in addition to natural absence, "both:0.7"; a rate counts what is MISSING.
        seed: of the missing table.
        table: a missing table of your own, from `mora.data.load_table`, instead of `missing` and `seed`.
        label: name of the model in the result; None takes the method's.
        batch: samples at a time.
        workers: processes that read and preprocess.

    Raises ValueError for other classes than the run's, a wrong condition or table, an unreadable image, and where the
    metric is not defined.
    """
    if table is not None:
        return cells(run, dataset, [], (seed,), {"": table}, label, batch, workers)[0]
    condition = Missing.parse(missing) if isinstance(missing, str) else missing
    return cells(run, dataset, [condition], (seed,), {}, label, batch, workers)[0]


def grid(
    run: LoadedRun,
    dataset: Dataset,
    types: Sequence[str] | None = None,
    rates: Sequence[float] | None = None,
    seeds: Sequence[int] = SEEDS,
    label: str | None = None,
    batch: int = 64,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[Result]:
    """One checkpoint with nothing taken away, then under every type, rate and seed, for one pass over the towers.

    `types` and `rates` are by default those of `grid_of`. The other arguments and errors are those of `evaluate`;
    `progress` is told the number of samples embedded.
    """
    conditions = grid_of(dataset.modalities, types, rates)
    return cells(run, dataset, conditions, seeds, {}, label, batch, workers, progress)


def grid_of(
    modalities: Sequence[str], types: Sequence[str] | None = None, rates: Sequence[float] | None = None
) -> list[Missing]:
    """Nothing, then every type at every rate.

    Of image and text by default text, image and both at 50, 70 and 90 %. Of other modalities every presence pattern:
    each set of them that rows can lose, from all rows; so the results are those of every subset that is there.
    """
    if set(modalities) == set(PAIR):
        return conditions_of(types or KINDS, rates or RATES)
    lost = sorted(patterns_of(modalities)[:-1], key=len)
    return conditions_of(types or ["+".join(names) for names in lost], rates or [1.0])


def conditions_of(types: Sequence[str], rates: Sequence[float]) -> list[Missing]:
    """Nothing, then every type at every rate; ValueError for an unknown type or a rate outside [0, 1]."""
    return [Missing(), *(Missing(kind, rate) for kind in types for rate in rates)]


def cells(
    run: LoadedRun,
    dataset: Dataset,
    conditions: Sequence[Missing],
    seeds: Sequence[int],
    tables: Mapping[str, MissingTable] | None = None,
    label: str | None = None,
    batch: int = 64,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
    cache: PrefixCache | None = None,
) -> list[Result]:
    """A result per condition and seed (one where nothing is taken), and one per table, by the name of its file.

    With a `cache` of the split, as `embed` takes it, no sample is read.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: got {list(seeds)}, expected at least one, each once")
    check_fits(run, dataset)
    drawn = [
        draw_table(dataset, condition, seed)
        for condition in dict.fromkeys(given if given.rate else Missing() for given in conditions)
        for seed in (seeds if drawn_at_random(condition, dataset) else seeds[:1])
    ]
    given = [(None, table) for table in drawn] + [(file or None, table) for file, table in (tables or {}).items()]
    present = [presence_of(table, dataset) for _, table in given]
    embeddings = embed(run, dataset, batch, workers, progress, cache)
    return [
        score(run, dataset, embeddings, table, what, file, label)
        for (file, table), what in zip(given, present, strict=True)
    ]


def drawn_at_random(condition: Missing, dataset: Dataset) -> bool:
    """Whether its tables differ from seed to seed: not where nothing, or the same from every row, is taken."""
    whole = set(dataset.modalities) != set(PAIR) and condition.rate == 1 and condition.modalities
    return bool(condition.rate) and not whole


def score(
    run: LoadedRun,
    dataset: Dataset,
    embeddings: Embeddings,
    table: MissingTable,
    present: Presence,
    file: str | None,
    label: str | None,
) -> Result:
    """The result of one table, and of what each sample has under it."""
    new = partial(Metric, run.metric, len(run.classes), run.multi_label)
    logits = torch.cat([part.float().cpu() for _, part in embeddings.logits(present)])
    metric, pair = new(), set(present.modalities) == set(PAIR)
    metric.update(logits, embeddings.labels, embeddings.groups)
    missing, counts = table.missing, present.missing
    kind = EITHER if missing.kind == BOTH and not pair else missing.label
    lacks = present.codes() if pair else present.mask
    return Result(
        model=label or run.method,
        method=run.method,
        data=dataset.name,
        split=dataset.split,
        kind=kind if missing.rate else NOTHING,
        rate=missing.rate,
        both_ratio=missing.both_ratio if missing.rate and kind == BOTH else None,
        seed=table.seed if missing.rate else None,
        table=file,
        rows=len(present),
        complete=present.complete,
        text_missing=counts.get("text", 0),
        image_missing=counts.get("image", 0),
        metric=run.metric,
        figures=metric.compute(),
        lacks_sha256=digest(lacks.numpy().tobytes()),
        patterns=scores_by_pattern(new, logits, embeddings.labels, present.by_modality(), embeddings.groups),
        further={name: count for name, count in counts.items() if name not in PAIR},
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
