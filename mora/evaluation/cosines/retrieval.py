"""Recall among all rows of a split, under any missing tables, for one pass over the towers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mora.contrast.loss import count_pairs
from mora.contrast.ranks import DEPTHS, Direction, figures_of, recall, retrieval
from mora.data.dataset import Dataset
from mora.data.tables import Missing, MissingTable, draw_table, presence_of
from mora.evaluation.cosines.models import ADAPTED
from mora.evaluation.cosines.rows import embed_rows
from mora.evaluation.grid import NOTHING
from mora.runs.run import LoadedRun


@dataclass(frozen=True)
class Retrieved:
    """What one model found on one split under one table.

    Attributes:
        model: label of the run.
        state: "adapted", "pretrained" (before its training), or "as it is" for a model whose training is not known.
        kind, rate, seed, table: what was taken away, as in `mora.evaluation.grid.Result`.
        rows: samples; `pairs` of them have both sides.
        directions: image to text, and text to image.
    """

    model: str
    state: str
    kind: str
    rate: float
    seed: int | None
    table: str | None
    rows: int
    pairs: int
    directions: tuple[Direction, ...]

    @property
    def figures(self) -> dict[str, float]:
        """Every figure by name: "recall_at_1" is the mean of both ways."""
        return figures_of([*self.directions])

    def lines(self) -> list[dict[str, Any]]:
        """A line per direction, for files."""
        own = {name: value for name, value in vars(self).items() if name != "directions"}
        return [
            {
                **own,
                "query": one.query,
                "target": one.target,
                "queries": one.queries,
                "candidates": one.candidates,
                **{recall(depth): one.recall[depth] for depth in DEPTHS},
                "median_rank": one.median_rank,
            }
            for one in self.directions
        ]


def evaluate_retrieval(
    run: LoadedRun,
    dataset: Dataset,
    conditions: Sequence[Missing] = (Missing(),),
    seeds: Sequence[int] = (0,),
    tables: Mapping[str, MissingTable] | None = None,
    label: str | None = None,
    state: str = ADAPTED,
    batch: int = 64,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[Retrieved]:
    """A result per condition and seed (one where nothing is taken), and one per table, by the name of its file.

    Args:
        run: a model: `load_run`, or `open_model` for merged folders and backbones.
        dataset: one split; labels do not matter.
        conditions, seeds, tables: what is taken away, as in `mora.evaluation.grid`.
        label: name of the model in the results; None takes the method's.
        state: of the model, for the results.
        batch, workers, progress: as in `mora.evaluation.grid`.

    Raises ValueError where no row has both sides, and for a table that does not fit.
    """
    drawn = [
        (None, draw_table(dataset, condition, seed))
        for condition in dict.fromkeys(given if given.rate else Missing() for given in conditions)
        for seed in (seeds if condition.rate else seeds[:1])
    ]
    given = [*drawn, *((file, table) for file, table in (tables or {}).items())]
    towers = run.model.towers  # tables are looked at before the towers run
    present = [presence_of(table, dataset).of_towers(towers).by_modality() for _, table in given]
    found, results = embed_rows(run, dataset, batch, workers, progress), []
    for (file, table), there in zip(given, present, strict=True):
        missing = table.missing
        results.append(
            Retrieved(
                model=label or run.method,
                state=state,
                kind=str(missing).partition(":")[0] if missing.rate else NOTHING,
                rate=missing.rate,
                seed=table.seed if missing.rate else None,
                table=file,
                rows=len(dataset),
                pairs=count_pairs(there),
                directions=tuple(retrieval(found.rows, there, found.pictures, run.model.device)),
            )
        )
    return results
