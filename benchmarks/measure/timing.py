"""Variants timed in turn within one process, so that a drifting machine moves all of them alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles

import torch

Run = Callable[[], object]
SHORTEST = 2e-4  # seconds; a faster variant is called several times per measurement


@dataclass(frozen=True)
class Spread:
    """Median, p20 and p80 of some numbers."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """The quantiles of at least one number."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        cuts = quantiles(values, n=5, method="inclusive")
        return cls(median(values), cuts[0], cuts[3])


@dataclass(frozen=True)
class Times:
    """One variant's seconds per call, a number per round: of the work, and of the host until it was handed over."""

    work: list[float]
    host: list[float]


class CpuTimer:
    """Work done by this process's threads: the wall clock."""

    def measure(self, run: Run, calls: int) -> tuple[float, float]:
        """(seconds of one call, the same: on a CPU the host does the work)."""
        start = time.perf_counter()
        for _ in range(calls):
            run()
        seconds = (time.perf_counter() - start) / calls
        return seconds, seconds


class CudaTimer:
    """Work done by a GPU, between two events on its stream; `cold` empties the L2 cache before each call."""

    def __init__(self, cold: bool = False) -> None:
        self.cold = cold
        size = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        self.flush = torch.empty(4 * size, dtype=torch.int8, device="cuda") if cold else None

    def measure(self, run: Run, calls: int) -> tuple[float, float]:
        """(seconds of one call on the device, seconds until the host had handed it over)."""
        calls = 1 if self.flush is not None else calls
        if self.flush is not None:
            self.flush.zero_()
        torch.cuda.synchronize()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        host = time.perf_counter() - start
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3 / calls, host / calls


def interleave(
    variants: Mapping[str, Run],
    timer: CpuTimer | CudaTimer | None = None,
    rounds: int = 7,
    seconds: float = 0.0,
    most: int = 60,
    warmup: int = 2,
) -> dict[str, Times]:
    """Time every variant once per round, in alternating order; return its seconds per call, a number per round.

    Args:
        variants: what to call, by name.
        timer: by default the wall clock.
        rounds: at least so many.
        seconds: go on until so much time has passed, but not beyond `most` rounds.
        warmup: calls of each before the first round; they also tell how many calls one measurement takes.
    """
    timer = timer or CpuTimer()
    calls = {}
    for name, run in variants.items():
        for _ in range(warmup):
            once, _ = timer.measure(run, 1)
        calls[name] = max(1, min(1000, round(SHORTEST / max(once, 1e-7)))) if warmup else 1
    found: dict[str, Times] = {name: Times([], []) for name in variants}
    names, began = list(variants), time.perf_counter()
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        turn = 0
        while turn < rounds or (turn < most and time.perf_counter() - began < seconds):
            for name in names if turn % 2 == 0 else reversed(names):
                work, host = timer.measure(variants[name], calls[name])
                found[name].work.append(work)
                found[name].host.append(host)
            turn += 1
    finally:
        if collecting:
            gc.enable()
    return found


def captured(run: Run) -> Run:
    """The replay of `run` as a CUDA graph; raises RuntimeError where it cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
