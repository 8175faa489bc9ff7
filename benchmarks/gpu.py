"""One script for a GPU: parity of every kernel first, nothing timed on red; then `pytest benchmarks/ --benchmark`.

benchmarks/gpu.sh [--smoke] [any option of pytest, for instance --levels projection]
"""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import torch

from benchmarks import gpu_parity


def main(arguments: list[str]) -> int:
    """Run parity, then the benchmarks; `--smoke` does both on toys on a CPU, in Triton's interpreter."""
    smoke = "--smoke" in arguments
    device = "cpu" if smoke else "cuda"
    if not smoke and not torch.cuda.is_available():
        sys.exit("no CUDA device: run `benchmarks/gpu.sh --smoke` for the same code on a CPU")
    start = time.perf_counter()
    dtypes = [torch.float32, torch.float16, *([] if smoke else [torch.bfloat16])]
    cases = ["odd", "zero-columns"] if smoke else list(gpu_parity.CASES)
    checks = [
        gpu_parity.projections(device, dtypes, cases),
        gpu_parity.groups(device, dtypes, (48, 32) if smoke else (768, 512)),
        gpu_parity.masks(device),
        *([] if smoke else [gpu_parity.graphs(device), gpu_parity.offsets(device)]),
    ]
    for name in chain(*checks):
        print(f"parity  {name}", flush=True)
    print(f"parity holds, {time.perf_counter() - start:.0f} s", flush=True)
    options = ["--device", device, *(() if smoke else ("--benchmark",))]
    given = [argument for argument in arguments if argument != "--smoke"]
    run = [sys.executable, "-m", "pytest", "-n", "0", "benchmarks", "-p", "no:cacheprovider", *options, *given]
    return subprocess.run(run, cwd=Path(__file__).parents[1], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
