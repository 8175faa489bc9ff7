"""The device's two ceilings, measured in the same run, and how much of them a time reaches."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.case import Work
from benchmarks.measure.timing import CpuTimer, CudaTimer, interleave


@dataclass(frozen=True)
class Ceilings:
    """What a device does at best: operations per second in a square matrix product, bytes per second in a copy."""

    flops: float
    bandwidth: float

    def least(self, work: Work) -> float:
        """The seconds below which `work` cannot be done here."""
        return max(work.flops / self.flops, work.bytes / self.bandwidth)

    def share(self, work: Work, seconds: float) -> float:
        """`least` over the measured seconds: 1 is the roofline."""
        return self.least(work) / seconds


def measure_ceilings(device: str, smoke: bool) -> Ceilings:
    """Time a large product (float32 on a CPU, float16 on a GPU) and a large copy; the best of the rounds."""
    cuda = device == "cuda"
    size = 64 if smoke else 8192 if cuda else 2048
    length = 2**16 if smoke else 2**28 if cuda else 2**26
    a = torch.randn(size, size, device=device, dtype=torch.float16 if cuda else torch.float32)
    source, target = (torch.zeros(length, device=device) for _ in range(2))
    variants = {"product": lambda: torch.mm(a, a), "copy": lambda: target.copy_(source)}
    times = interleave(variants, CudaTimer() if cuda else CpuTimer(), rounds=3 if smoke else 9)
    best = {name: min(found.work) for name, found in times.items()}
    return Ceilings(2 * size**3 / best["product"], 2 * 4 * length / best["copy"])


def to_text(ceilings: Ceilings) -> str:
    """The ceilings in words."""
    return f"{ceilings.flops / 1e9:,.0f} GFLOP/s and {ceilings.bandwidth / 1e9:,.1f} GB/s"
