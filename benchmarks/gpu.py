"""One script for a GPU: parity first, nothing timed on red; then projections, the grouped build, the training step.

    benchmarks/gpu.sh [--smoke] [--skip-step]

Every row holds medians with p20 and p80 over interleaved rounds of one process, eager and as a replayed CUDA graph.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import torch

import mora_kernels
from benchmarks import gpu_parity, gpu_providers
from benchmarks.sites import preset
from benchmarks.timing import Timing, interleave

RESULTS = Path(__file__).parent / "results" / "gpu.jsonl"
Run = Callable[[], object]


def environment(device: str) -> dict[str, object]:
    """What a row needs to be read later."""
    import triton

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU, Triton's interpreter",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
    }


def repeated(run: Run, times: int) -> Run:
    """`run` several times, then wait for the device: the host's share of one wait is divided away."""

    def loop() -> None:
        for _ in range(times):
            run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return loop


def captured(run: Run) -> Run | None:
    """The replay of `run` as a CUDA graph; None where a provider cannot be captured: it is left out."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    except Exception as error:
        print(f"  not captured: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
        torch.cuda.synchronize()
        return None
    return graph.replay


def measure(runs: dict[str, Run], smoke: bool, times: int) -> dict[str, dict[str, Timing]]:
    """Return mode -> provider -> timing of one run in seconds."""
    modes = {"eager": runs}
    if not smoke:
        replays = {name: captured(run) for name, run in runs.items()}
        modes["graph"] = {name: run for name, run in replays.items() if run is not None}
    rounds, times = (2, 1) if smoke else (40, times)
    result = {}
    for mode, variants in modes.items():
        timings = interleave({name: repeated(run, times) for name, run in variants.items()}, rounds)
        result[mode] = {
            name: Timing(t.median / times, t.p20 / times, t.p80 / times, t.rounds) for name, t in timings.items()
        }
    return result


def rows(op: str, shape: dict[str, object], timings: dict[str, dict[str, Timing]], base: str) -> Iterator[dict]:
    """Yield one row per mode and provider, and print the short table."""
    print(f"{op} {shape}")
    for mode, variants in timings.items():
        for name, timing in variants.items():
            ratio = variants[base].median / timing.median if base in variants else None
            row = {"op": op, "shape": shape, "mode": mode, "provider": name, "rounds": timing.rounds}
            row |= {f"{key}_us": round(1e6 * getattr(timing, key), 2) for key in ("median", "p20", "p80")}
            row["times_faster_than_" + base.replace(" ", "_")] = None if ratio is None else round(ratio, 3)
            print(f"  {mode:6} {name:18} {row['median_us']:10.1f} us [{row['p20_us']:.1f}, {row['p80_us']:.1f}]"
                  + ("" if ratio is None else f"  {ratio:5.2f} x {base}"))  # fmt: skip
            yield row


def projection_rows(device: str, smoke: bool) -> Iterator[dict]:
    """One projection, forward and backward with dX, under fp16 autocast and dropout 0.1, beside what people use."""
    full = [(768, 512, 197, 32), (768, 512, 197, 256), (512, 768, 77, 32), (512, 768, 77, 256)]
    shapes = [(48, 32, 12, 2)] if smoke else full
    for width, other, length, batch in shapes:
        for dropout in (0.1, 0.0):
            sites = preset(width, other, length * batch, device, layers=1)
            runs = gpu_providers.projection(sites, dropout, device, compiled=not smoke)
            shape = {
                "width": width,
                "batch": batch,
                "tokens": length,
                "rank": "4+4",
                "dropout": dropout,
                "autocast": "float16",
            }
            yield from rows("projection", shape, measure(runs, smoke, 10), "official")
            torch.cuda.empty_cache()


def build_rows(device: str, smoke: bool) -> Iterator[dict]:
    """The build of the eight projections of ViT-B/16 and its backward pass, alone."""
    sites = preset(*((48, 32) if smoke else (768, 512)), 8, device)
    group = mora_kernels.Group(sites, "triton")
    state = group._build("triton", torch.float16, None, False)
    engine, factors = state.values.engine, state.values.factors
    grads = [slot.normal_() for slot in engine.grad_slots]
    runs: dict[str, Run] = {
        "build": partial(engine.build, factors),
        "build backward": partial(engine.backward, grads),
    }
    yield from rows("grouped build", {"preset": "ViT-B/16", "projections": 8}, measure(runs, smoke, 20), "build")


def main() -> None:
    """Run parity, then every timing, and append the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="toy sizes on the CPU, no rows written")
    parser.add_argument("--skip-step", action="store_true", help="leave the whole training step out")
    arguments = parser.parse_args()
    smoke, device = arguments.smoke, "cpu" if arguments.smoke else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
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
    timings = [projection_rows(device, smoke), build_rows(device, smoke)]
    if not arguments.skip_step:
        timings.append(
            row
            for shape, runs in gpu_providers.steps(device, smoke)
            for row in rows("training step", shape, measure(runs, smoke, 1), "official")
        )
    found = []
    for row in chain(*timings):
        found.append({**environment(device), **row})
    if not smoke:
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in found)
        print(f"{len(found)} rows appended to {RESULTS}")
    print(f"{len(found)} timings in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
