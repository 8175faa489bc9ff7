"""The parts of a run on a GPU, in their order, each with its time limit: what is right, then how fast it is."""

from __future__ import annotations

import importlib.metadata
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import mora
from benchmarks import gpu_behaviour, gpu_parity, gpu_timings
from benchmarks.gpu_behaviour import NotHereError
from benchmarks.gpu_timings import ADAPTERS, BATCHES, COMPILED, Item
from benchmarks.harness import GRAPH
from benchmarks.sizes import Scale
from mora_kernels import backend as backends

OK, FAILED, SKIPPED = "ok", "FAILED", "skipped"
NEEDS_GPU = "needs a GPU"


@dataclass(frozen=True)
class Part:
    """One process of a run.

    Attributes:
        name: what `--parts` calls it.
        seconds: after so many it is killed.
        items: yields what it does one by one: a label, and a call that returns more to say or raises.
        check: whether it says what is right, not how fast it is.
        gpu: whether nothing of it can run on a CPU.
        quick: whether it belongs to a run that names no parts.
    """

    name: str
    seconds: int
    items: Callable[[Scale, Path], Iterator[Item]]
    check: bool = True
    gpu: bool = False
    quick: bool = True


def dtypes(scale: Scale) -> list[torch.dtype]:
    """What the kernels compute in; the interpreter computes bfloat16 wrongly."""
    return [torch.float32, torch.float16, *([] if scale.device == "cpu" else [torch.bfloat16])]


def installed(scale: Scale, out: Path) -> Iterator[Item]:
    """Versions, device, capability, and that the fused kernels are what "auto" picks."""
    from benchmarks.environment import environment
    from mora.system.doctor import doctor

    def facts() -> str:
        if scale.device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("no CUDA device: `benchmarks/gpu.sh --smoke` runs the same code on a CPU")
        lines = [f"  {name:16} {value}" for name, value in environment(scale.device).items()]
        return "\n".join(["", *lines, f"  {'numpy':16} {importlib.metadata.version('numpy')}", doctor()])

    def chosen() -> str:
        asked = "triton" if scale.device == "cpu" else "auto"
        for dtype in dtypes(scale):
            name, reason = backends.explain(asked, torch.device(scale.device), dtype)
            assert name == "triton", f"{dtype}: got backend {name!r} ({reason}), expected 'triton'"
        return reason

    yield "versions and device", facts
    yield "backend", chosen


def parity(scale: Scale, out: Path) -> Iterator[Item]:
    """The eight projections of every shipped preset at ViT-B/16's widths, then one projection alone, by dtype."""
    widths = (24, 16) if scale.smoke else (768, 512)
    for index, dtype in enumerate(dtypes(scale)):
        presets = list(mora.PRESETS.items())
        for name, config in [presets[index]] if scale.smoke else presets:
            rank, alpha = config.shared_rank, config.alpha
            yield (
                f"{name}, rank {rank}, alpha {alpha:g}",
                said(gpu_parity.groups, scale.device, [dtype], widths, rank, alpha, 1 if scale.smoke else 2),
            )
    for case in ("odd",) if scale.smoke else ("food101", "hateful_memes"):
        for dtype in dtypes(scale):
            yield "one projection", said(gpu_parity.projections, scale.device, [dtype], [case])


def shapes(scale: Scale, out: Path) -> Iterator[Item]:
    """Odd sizes, clamped columns, three modalities, ranks 17 and 64."""
    for case in ("zero-columns",) if scale.smoke else gpu_parity.CASES:
        for dtype in dtypes(scale):
            yield "one projection", said(gpu_parity.projections, scale.device, [dtype], [case])


def dropout(scale: Scale, out: Path) -> Iterator[Item]:
    """One mask in every pass over a step."""
    yield "forward and backward", lambda: gpu_behaviour.same_mask_in_backward(scale.device)
    yield "activation checkpointing", lambda: gpu_behaviour.same_mask_recomputed(scale.device)
    yield "a replayed CUDA graph", lambda: gpu_behaviour.same_mask_replayed(scale.device)
    yield "an explicit mask", said(gpu_parity.masks, scale.device)


def offsets(scale: Scale, out: Path) -> Iterator[Item]:
    """More elements than 32 bits can count."""
    yield "dropout", said(gpu_parity.offsets, scale.device)


def edges(scale: Scale, out: Path) -> Iterator[Item]:
    """Where and on how little it runs; a step captured and replayed after the factors changed."""
    yield "0 rows", lambda: gpu_behaviour.no_rows(scale.device)
    yield "a second stream", lambda: gpu_behaviour.second_stream(scale.device)
    yield "a second device", lambda: gpu_behaviour.second_device(scale.device)
    if scale.device == "cuda":
        yield "a captured step", said(gpu_parity.graphs, scale.device)


def compiled(scale: Scale, out: Path) -> Iterator[Item]:
    """torch.compile."""
    yield "mora_linear", lambda: gpu_behaviour.compiled_linear(scale.device, scale.smoke)
    yield "dropout", lambda: gpu_behaviour.compiled_dropout(scale.device, scale.smoke)


def said(check: Callable[..., Iterator[str]], *arguments: object) -> Callable[[], str]:
    """A check that yields words, as one call."""
    return lambda: ", ".join(check(*arguments))


# The limits of a quick run and START, the imports before it, make at most 360 seconds.
START = 15
PARTS = (
    Part("installed", 10, installed),
    Part("parity", 60, parity),
    Part("dropout", 20, dropout),
    Part("offsets", 15, offsets, gpu=True),
    Part("edges", 15, edges),
    Part("compile", 30, compiled),
    Part("projection-image", 30, gpu_timings.projection(0, ("official", *ADAPTERS), BATCHES), check=False),
    Part("projection-text", 15, gpu_timings.projection(4, ("official", *ADAPTERS), BATCHES), check=False),
    Part("projection-large", 25, gpu_timings.projection(1, ("official", *ADAPTERS), BATCHES), check=False),
    Part("build", 10, gpu_timings.build, check=False),
    Part("step", 30, gpu_timings.steps("eager"), check=False),
    Part("savings", 20, gpu_timings.model_items(gpu_timings.saved_steps), check=False),
    Part("evaluation", 15, gpu_timings.model_items(gpu_timings.evaluation), check=False),
    Part("step-graph", 20, gpu_timings.steps(GRAPH), check=False, gpu=True),
    Part("projection-compiled", 30, gpu_timings.projection(0, COMPILED, (32, 256)), check=False),
    Part("shapes", 120, shapes, quick=False),
)
NAMES = {part.name: part for part in PARTS}


def first_line(error: BaseException) -> str:
    """An error in one line; of an assertion without words, the line that made it."""
    text = str(error).strip()
    if not text:
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{Path(where.filename).name}, line {where.lineno}: {where.line}"
    return f"{type(error).__name__}: {text.splitlines()[0]}"


def run(part: Part, scale: Scale, out: Path) -> int:
    """Do a part in this process, a line per item; 0, 1 where a result was wrong, 3 where something else failed."""
    code = 0

    def attempt(label: str, call: Callable[[], str]) -> None:
        nonlocal code
        start = time.perf_counter()
        try:
            more = call()
        except NotHereError as reason:
            print(f"{SKIPPED}  {label}: {reason}", flush=True)
        except Exception as error:
            code = 1 if isinstance(error, AssertionError) or code == 1 else 3
            print(f"{FAILED}  {label}: {first_line(error)}", flush=True)
            traceback.print_exc()
        else:
            print(f"{OK}  {label} ({time.perf_counter() - start:.1f} s) {more}".rstrip(), flush=True)

    try:
        for label, call in part.items(scale, out):
            attempt(label, call)
    except NotHereError as reason:
        print(f"{SKIPPED}  {part.name}: {reason}", flush=True)
    except Exception as error:
        code = code or 3
        print(f"{FAILED}  {part.name}: {first_line(error)}", flush=True)
        traceback.print_exc()
    return code
