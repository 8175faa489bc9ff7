"""The runs of the demo: each a `Trainer` with its configuration, tested by `mora.evaluation`; several at once."""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mora.data.dataset import Dataset
from mora.data.open import open_dataset
from mora.data.tables import Missing, table_seed
from mora.data.views import thinned
from mora.demo.settings import DATA, LABELS, Settings
from mora.evaluation.grid import Result, cells, conditions_of
from mora.runs.run import METRICS, load_run
from mora.savings import PrefixCache, sample_parts
from mora.training.batches import Inputs
from mora.training.trainer import Trainer

KINDS = ("image", "text", "both")  # what the test part lacks, beside nothing
PRELOADED = ("accelerate", "open_clip", "peft", "torchmetrics.classification")
ROWS = "rows"  # the folder of the frozen blocks' rows, which all runs share


class Job(NamedTuple):
    """One run to do: settings (they may differ between the jobs of a grid), method, seed, and whether it is tested."""

    settings: Settings
    method: str
    seed: int
    tested: bool = True


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
        results=score(job, folder, place / ROWS) if job.tested else [],
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


@contextmanager
def one_thread(device: str) -> Iterator[None]:
    """PyTorch on one CPU thread within the block; on a GPU nothing changes."""
    before = torch.get_num_threads()
    try:
        if device == "cpu":
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)


def starting() -> Any:
    """How processes start: from one that has imported everything, where the system can; importing takes long."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *PRELOADED])
    return context


def train_all(jobs: list[Job], place: Path, at_once: int, told: Callable[[Run], Any]) -> list[Run]:
    """Every job's run, in order; `told` hears of each when it is over.

    On the CPU there are `at_once` processes, a thread each, so that results do not depend on how many ran beside them;
    with one, or on a GPU, jobs run here one after another.
    """
    device = jobs[0].settings.device
    at_once = min(at_once, len(jobs)) if device == "cpu" else 1
    if at_once == 1:
        runs = []
        with one_thread(device):
            for job in jobs:
                runs.append(train(job, place))
                told(runs[-1])
        return runs
    pool = concurrent.futures.ProcessPoolExecutor(at_once, starting(), torch.set_num_threads, (1,))
    try:
        futures = [pool.submit(train, job, place) for job in jobs]
        for future in concurrent.futures.as_completed(futures):
            told(future.result())
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
