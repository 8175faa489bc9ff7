"""Check, time and describe a case: parity first, then every provider in turn, then one row each."""

from __future__ import annotations

import functools
from dataclasses import asdict, replace
from types import ModuleType
from typing import Any, NamedTuple

import torch

from benchmarks.case import Case, Provider, Shape
from benchmarks.environment import environment
from benchmarks.measure.memory import Footprint, footprint
from benchmarks.measure.roofline import Ceilings, measure_ceilings
from benchmarks.measure.timing import CpuTimer, CudaTimer, Run, Spread, Times, captured, interleave
from benchmarks.rows import Row
from benchmarks.sizes import Scale


class Choice(NamedTuple):
    """What of a case is measured where time is short: None is all of it; the baseline is never left out."""

    providers: tuple[str, ...] | None = None
    modes: tuple[str, ...] | None = None
    effort: Effort | None = None

    def of(self, case: Case) -> Case:
        """The case with the chosen providers."""
        names = (case.baseline, *(case.providers if self.providers is None else self.providers))
        return replace(case, providers={name: each for name, each in case.providers.items() if name in names})


class Effort(NamedTuple):
    """How long a case is timed: at least `rounds`, on until `seconds` have passed; `warmup` calls before.

    On a CPU a whole model needs none: its parity check has run it. A GPU compiles kernels then, and gets three.
    """

    seconds: float
    rounds: int
    warmup: int


# Chosen so that a CPU run of every level stays below half an hour.
EFFORT = {
    "operations": Effort(1.5, 9, 2),
    "host": Effort(1.0, 9, 2),
    "towers": Effort(1.0, 7, 2),
    "switch": Effort(3.0, 31, 2),
    "projection": Effort(1.2, 5, 2),
    "attention": Effort(3.0, 7, 2),
    "training_step": Effort(0.0, 4, 0),
    "inference": Effort(0.0, 5, 0),
    "epoch": Effort(0.0, 3, 0),
    "savings": Effort(0.0, 3, 0),
}
SMOKE = Effort(0.0, 1, 0)
WHOLE = Choice()
GRAPH = "graph"
SINGLE_LAYER = ("operations", "towers", "projection", "attention")


@functools.cache
def ceilings(scale: Scale) -> Ceilings:
    """The two ceilings of this device, measured once per run."""
    return measure_ceilings(scale.device, scale.smoke)


def measure(
    level: ModuleType, shape: Shape, scale: Scale, choice: Choice = WHOLE
) -> tuple[Case, list[Row], dict[tuple[str, str], Times]]:
    """Return the case, one row per mode and provider, and the seconds of every round by (mode, provider).

    Raises AssertionError, before anything is timed, when a provider's results are not the oracle's.
    """
    if scale.smoke and torch.get_num_threads() > 1:  # toys need no second thread, and wait for it on a busy machine
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return measure(level, shape, scale, choice)
        finally:
            torch.set_num_threads(threads)
    torch.manual_seed(0)
    case = choice.of(level.build(shape, scale))
    case.check()
    times = {}
    for mode, (timer, runs) in modes(case, scale, choice.modes).items():
        effort = choice.effort or (SMOKE if scale.smoke else EFFORT[case.level])
        warmup = effort.warmup if scale.device == "cpu" else 3
        found = interleave(runs, timer, effort.rounds, effort.seconds, warmup=warmup)
        times.update({(mode, name): each for name, each in found.items()})
    footprints = {name: footprint(provider, scale.device, case.square) for name, provider in case.providers.items()}
    return case, rows(case, scale, times, footprints), times


def modes(
    case: Case, scale: Scale, chosen: tuple[str, ...] | None = None
) -> dict[str, tuple[CpuTimer | CudaTimer, dict[str, Run]]]:
    """How each provider is called: eagerly; for single layers on a GPU also with a cold L2, and as a CUDA graph.

    Without the baseline's graph there is nothing to divide by, and no row of graphs.
    """
    runs = {name: provider.run for name, provider in case.providers.items()}
    if scale.device == "cpu":
        return {"eager": (CpuTimer(), runs)}
    if chosen is None:
        chosen = ("eager", "eager, cold L2", GRAPH) if case.level in SINGLE_LAYER else ("eager",)
    found: dict[str, tuple[CpuTimer | CudaTimer, dict[str, Run]]] = {}
    for mode in chosen:
        replays = graphs(case.providers) if mode == GRAPH else runs
        if case.baseline in replays:
            found[mode] = CudaTimer(cold="cold" in mode), replays
    return found


def graphs(providers: dict[str, Provider]) -> dict[str, Run]:
    """The providers that can be captured as CUDA graphs, captured."""
    found = {}
    for name, provider in providers.items():
        if provider.capturable:
            try:
                found[name] = captured(provider.run)
            except RuntimeError as error:
                torch.cuda.synchronize()
                print(f"{name}: not captured: {str(error).splitlines()[0]}")
    return found


def rows(case: Case, scale: Scale, times: dict[tuple[str, str], Times], footprints: dict[str, Footprint]) -> list[Row]:
    """One row per mode and provider."""
    common = environment(scale.device) | {"level": case.level, "shape": case.shape}
    top = ceilings(scale) if case.work else None
    found = []
    for (mode, name), each in times.items():
        spread = Spread.of(each.work)
        row: dict[str, Any] = {**common, "mode": mode, "provider": name, "rounds": len(each.work)}
        row["seconds"] = rounded(asdict(spread))
        row["host_seconds"] = rounded(asdict(Spread.of(each.host)))
        row["baseline"] = case.baseline
        row["times_faster"] = rounded(asdict(faster(times[mode, case.baseline], each)))
        row |= asdict(footprints[name])
        if case.work and top and case.providers[name].least:
            row["work"] = asdict(case.work)
            row["ceilings"] = rounded(asdict(top))
            row["roofline_share"] = float(f"{top.share(case.work, spread.median):.4g}")
        found.append(row)
    return found


def faster(baseline: Times, other: Times) -> Spread:
    """How many times as fast as the baseline, round by round: both were timed within the same moments."""
    return Spread.of([slow / fast for slow, fast in zip(baseline.work, other.work, strict=True)])


def rounded(values: dict[str, float]) -> dict[str, float]:
    """Five significant digits: what a row needs to be compared."""
    return {name: float(f"{value:.5g}") for name, value in values.items()}
