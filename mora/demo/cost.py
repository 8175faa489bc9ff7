"""What a method costs: numbers trained, seconds, bytes, and milliseconds a sample before and after merging."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from mora.data.dataset import Dataset
from mora.demo.runs import Run
from mora.runs.methods import fold
from mora.runs.run import LoadedRun, load_run

BATCH, ROUNDS = 32, 7


class Cost(NamedTuple):
    """Of one method, mean over its runs; milliseconds are medians of one run's model on this machine.

    Attributes:
        method: by name.
        numbers: trained beside the head.
        seconds: of a training.
        size: bytes of adapter and head on disk.
        adapted, merged: milliseconds a sample for both towers and the head, in batches of 32.
    """

    method: str
    numbers: int
    seconds: float
    size: int
    adapted: float
    merged: float


def costs(runs: Sequence[Run], dataset: Dataset) -> list[Cost]:
    """One for every method among `runs`, in their order; the models of all are timed in turns."""
    first = {run.method: run for run in reversed(runs)}
    first = {method: first[method] for method in dict.fromkeys(run.method for run in runs)}
    samples = [dataset[index] for index in range(min(BATCH, len(dataset)))]
    loaded = {method: load_run(run.folder) for method, run in first.items()}
    adapted = timed(loaded, samples)
    for method, run in loaded.items():
        fold(run.model.model, run.method, run.mora_config)
        loaded[method] = run
    merged = timed(loaded, samples)
    found = []
    for method, one in first.items():
        same = [run for run in runs if run.method == method]
        seconds = sum(run.seconds for run in same) / len(same)
        found.append(Cost(method, one.parameters, seconds, one.size, adapted[method], merged[method]))
    return found


@torch.no_grad()
def timed(loaded: dict[str, LoadedRun], samples: Sequence[Any]) -> dict[str, float]:
    """Median milliseconds a sample of each model, a round of every one after the other."""
    inputs = {}
    for method, run in loaded.items():
        images = torch.stack([run.preprocess(sample.image) for sample in samples]).to(run.model.device)
        inputs[method] = images, run.tokenize([sample.text for sample in samples]).to(run.model.device)
        run.model.eval()(*inputs[method])
    rounds: dict[str, list[float]] = {method: [] for method in loaded}
    for _ in range(ROUNDS):
        for method, run in loaded.items():
            started = time.perf_counter()
            run.model(*inputs[method]).sum().item()
            rounds[method].append(1000 * (time.perf_counter() - started) / len(samples))
    return {method: statistics.median(times) for method, times in rounds.items()}
