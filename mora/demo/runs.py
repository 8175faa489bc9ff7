"""The runs of the demo: each a `Trainer` with its configuration, tested by `mora.evaluation`; several at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mora.data.dataset import Dataset
from mora.data.open import open_dataset
from mora.data.tables import Missing, table_seed
from mora.data.views import thinned
from mora.demo.methods import LABELS, METHODS
from mora.demo.settings import CURVE_RATES, Settings
from mora.demo.tasks import TASKS
from mora.evaluation.grid import Result, cells, conditions_of
from mora.runs.run import BEST, METRICS, load_run
from mora.savings import PrefixCache, sample_parts
from mora.sweeping.workers import LostProcessError, each
from mora.training.batches import Inputs
from mora.training.trainer import Trainer

KINDS = ("image", "text", "both")  # what the test part lacks, beside nothing
ROWS = "rows"  # the folder of the frozen blocks' rows, which all runs share


class Job(NamedTuple):
    """One run to do; `complete`: trained and validated with nothing missing."""

    settings: Settings
    task: str
    method: str
    seed: int
    complete: bool = False

    @property
    def name(self) -> str:
        """Of the run's folder."""
        return f"{self.task}-{self.method}{'-complete' * self.complete}-seed{self.seed}"


@dataclass(frozen=True)
class Run:
    """What one method did with one seed on one task.

    Attributes:
        task, method, seed, complete: of the job.
        parameters: trained beside the head.
        losses, validation: mean loss and validation accuracy of every epoch.
        best_epoch: the one that was kept, from 1.
        seconds: of training.
        size: bytes of what was trained, on disk, with the head.
        results: the test part with nothing missing, and with every kind at every rate.
        folder: of the run, while the demo lasts.
    """

    task: str
    method: str
    seed: int
    complete: bool
    parameters: int
    losses: list[float]
    validation: list[float]
    best_epoch: int
    seconds: float
    size: int
    results: list[Result]
    folder: Path = Path()

    @property
    def best(self) -> float:
        """Validation accuracy of the epoch that was kept."""
        return self.validation[self.best_epoch - 1]

    def to_dict(self) -> dict[str, Any]:
        """All but the folder, as JSON types; losses, seconds and figures rounded."""
        rest = {name: value for name, value in vars(self).items() if name not in ("folder", "results")}
        rest |= {"losses": [round(loss, 4) for loss in self.losses], "seconds": round(self.seconds, 2)}
        return {**rest, "results": [rounded(result.to_dict()) for result in self.results]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Run:
        """The inverse of `to_dict`."""
        return cls(**{**values, "results": [Result(**result) for result in values["results"]]})


def rounded(value: Any) -> Any:
    """JSON types with six digits behind the point."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    return round(value, 6) if isinstance(value, float) else value


def part(task: str, split: str, limit: int | None = None) -> Dataset:
    """One part of a task; `limit` keeps evenly spaced rows of it."""
    return thinned(open_dataset(TASKS[task].data, split), limit)


def conditions(settings: Settings) -> list[Missing]:
    """What the test part lacks: nothing, then each kind at the rates of the curve and the one of the settings."""
    return conditions_of(KINDS, sorted({*CURVE_RATES, settings.rate} - {0.0}))


def train(job: Job, place: Path) -> Run:
    """Do one job in a folder of its own in `place`; no run of that name may be there."""
    from rich.console import Console

    settings, folder = job.settings, place / job.name
    config = settings.config(job.task, job.method, job.seed, folder, place / ROWS, job.complete)
    seen = {split: part(job.task, split) for split in ("train", "validation")}
    trainer = Trainer(config, datasets=seen, console=Console(quiet=True))
    result = trainer.fit()
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    epochs = [line for line in lines if line["event"] == "epoch"]
    return Run(
        task=job.task,
        method=job.method,
        seed=job.seed,
        complete=job.complete,
        parameters=result.parameters - sum(p.numel() for p in trainer.model.own_parameters().values()),
        losses=[epoch["loss"] for epoch in epochs],
        validation=[epoch["validation"][trainer.task.metric] for epoch in epochs],
        best_epoch=result.best_epoch,
        seconds=result.seconds,
        size=trained_bytes(folder),
        results=score(job, folder, place / ROWS),
        folder=folder,
    )


def trained_bytes(folder: Path) -> int:
    """Of adapter and head on disk."""
    return sum(path.stat().st_size for path in (folder / BEST).glob("*.safetensors"))


def score(job: Job, folder: Path, rows: Path) -> list[Result]:
    """The best epoch of a run under every condition, from rows past the frozen blocks."""
    run = load_run(folder, job.settings.device)
    dataset = part(job.task, "test", job.settings.limit)
    inputs = Inputs(dataset, dataset.present(), run.preparing)
    known = sample_parts(dataset, run.preprocess, run.tokenize)
    cache = PrefixCache(run.model, inputs, folder=rows, parts=known)
    cache.fill()
    seeds = (table_seed(job.seed, "test"),)
    return cells(run, dataset, conditions(job.settings), seeds, label=LABELS[job.method], cache=cache)


def jobs_of(settings: Settings) -> list[Job]:
    """Every run of a demo, slow ones first: the processes then end together."""
    order = []
    for task in reversed(settings.tasks):
        for seed in range(settings.seeds_of(task)):
            order += [Job(settings, task, method, seed) for method in reversed(settings.methods)]
            if seed < settings.fewer_seeds:
                order += [Job(settings, task, method, seed, True) for method in settings.complete_methods(task)]
    return order


def train_all(jobs: list[Job], place: Path, at_once: int, told: Callable[[Run], Any]) -> list[Run]:
    """Every job's run, by task, method and seed; `told` hears of each when it is over.

    On the CPU there are `at_once` processes, a thread each, so that results do not depend on how many ran beside them;
    with one, or on a GPU, jobs run here one after another. Raises ChildProcessError when a process died.
    """
    cpu = all(job.settings.device == "cpu" for job in jobs)
    runs = []
    for _, run in each(partial(train, place=place), jobs, at_once if cpu else 1, 1 if cpu else None):
        if isinstance(run, LostProcessError):
            raise run
        runs.append(run)
        told(run)
    tasks, methods = list(TASKS), list(METHODS)
    return sorted(runs, key=lambda run: (tasks.index(run.task), run.complete, methods.index(run.method), run.seed))
