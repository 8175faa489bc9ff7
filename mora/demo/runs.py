"""The runs of the demo: each a `Trainer` with its configuration, tested by `mora.evaluation`; several at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mora.data.dataset import Dataset
from mora.data.open import open_dataset
from mora.data.tables import Missing, table_seed
from mora.data.views import thinned
from mora.demo.settings import DATA, LABELS, Settings
from mora.evaluation.grid import Result, cells, conditions_of
from mora.runs.run import METRICS, load_run
from mora.savings import PrefixCache, sample_parts
from mora.sweeping.workers import LostProcessError, each
from mora.training.batches import Inputs
from mora.training.trainer import Trainer

KINDS = ("image", "text", "both")  # what the test part lacks, beside nothing
ROWS = "rows"  # the folder of the frozen blocks' rows, which all runs share


class Job(NamedTuple):
    """One run to do."""

    settings: Settings
    method: str
    seed: int


@dataclass(frozen=True)
class Run:
    """What one method did with one seed.

    Attributes:
        method, seed: of the job.
        folder: of the run, while the demo lasts.
        parameters: trained beside the head.
        losses, validation: mean loss and validation accuracy of every epoch.
        best_epoch: the one that was kept, from 1.
        seconds: of training and test.
        results: the test part with nothing, images, texts and either missing.
    """

    method: str
    seed: int
    folder: Path
    parameters: int
    losses: list[float]
    validation: list[float]
    best_epoch: int
    seconds: float
    results: list[Result]

    @property
    def best(self) -> float:
        """Validation accuracy of the epoch that was kept."""
        return self.validation[self.best_epoch - 1]


def part(split: str, limit: int | None = None) -> Dataset:
    """One part of the built-in drawings; `limit` keeps evenly spaced rows of it."""
    return thinned(open_dataset(DATA, split), limit)


def conditions(settings: Settings) -> list[Missing]:
    """What the test part lacks: nothing, then each kind at the rate of the settings, if that is above 0."""
    return conditions_of(KINDS if settings.rate else (), (settings.rate,))


def train(job: Job, place: Path) -> Run:
    """Do one job in a folder of its own in `place`; no run of that name may be there."""
    from rich.console import Console

    settings = job.settings
    folder = place / settings.name(job.method, job.seed)
    config = settings.config(job.method, job.seed, folder, place / ROWS)
    seen = {split: part(split) for split in ("train", "validation")}
    trainer = Trainer(config, datasets=seen, console=Console(quiet=True))
    result = trainer.fit()
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    epochs = [line for line in lines if line["event"] == "epoch"]
    return Run(
        method=job.method,
        seed=job.seed,
        folder=folder,
        parameters=result.parameters - sum(p.numel() for p in trainer.model.own_parameters().values()),
        losses=[epoch["loss"] for epoch in epochs],
        validation=[epoch["validation"][trainer.task.metric] for epoch in epochs],
        best_epoch=result.best_epoch,
        seconds=result.seconds,
        results=score(job, folder, place / ROWS),
    )


def score(job: Job, folder: Path, rows: Path) -> list[Result]:
    """The best epoch of a run under every condition, from rows past the frozen blocks."""
    run = load_run(folder, job.settings.device)
    dataset = part("test", job.settings.limit)
    substitutes = run.backbone.missing_image, run.backbone.empty_text
    inputs = Inputs(dataset, dataset.available(), run.preprocess, run.tokenize, *substitutes)
    known = sample_parts(dataset, run.preprocess, run.tokenize)
    cache = PrefixCache(run.model, inputs, folder=rows, parts=known)
    cache.fill()
    seeds = (table_seed(job.seed, "test"),)
    return cells(run, dataset, conditions(job.settings), seeds, label=LABELS[job.method], cache=cache)


def train_all(jobs: list[Job], place: Path, at_once: int, told: Callable[[Run], Any]) -> list[Run]:
    """Every job's run, in order; `told` hears of each when it is over.

    On the CPU there are `at_once` processes, a thread each, so that results do not depend on how many ran beside them;
    with one, or on a GPU, jobs run here one after another. Raises ChildProcessError when a process died.
    """
    cpu = jobs[0].settings.device == "cpu"
    runs: dict[int, Run] = {}
    for number, run in each(
        partial(train, place=place), jobs, min(at_once, len(jobs)) if cpu else 1, 1 if cpu else None
    ):
        if isinstance(run, LostProcessError):
            raise run
        runs[number] = run
        told(run)
    return [runs[number] for number in range(len(jobs))]
