"""Variants timed in turn within one process, so that a drifting machine moves all of them alike."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one variant over its rounds."""

    median: float
    p20: float
    p80: float
    rounds: int


def interleave(variants: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 3) -> dict[str, Timing]:
    """Run every variant `warmup` times, then once per round in alternating order; return its quantiles."""
    for _ in range(warmup):
        for run in variants.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds):
        names = list(variants)
        for name in names if turn % 2 == 0 else reversed(names):
            start = time.perf_counter()
            variants[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: timing(values) for name, values in seconds.items()}


def timing(seconds: list[float]) -> Timing:
    """Median, p20 and p80 of a list of seconds."""
    p20, median, p80 = (
        torch.tensor(seconds, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8]).double()).tolist()
    )
    return Timing(median, p20, p80, len(seconds))


def saved_square_bytes(run: Callable[[], object], size: int) -> int:
    """Bytes of the distinct `size` x `size` tensors that autograd keeps for the backward pass of `run`."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tuple(tensor.shape) == (size, size):
            kept[tensor.untyped_storage().data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    alive = []  # results stay alive, so that no storage is counted twice under one address
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive.append(run())
    return sum(kept.values())


def environment() -> dict[str, object]:
    """What a row needs to be read later: machine, threads, versions."""
    return {
        "device": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
