"""What a quick run on a GPU times: few cases of the levels, the providers that answer a question, short rounds."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import rows, sizes
from benchmarks.case import Shape
from benchmarks.gpu_behaviour import NotHereError
from benchmarks.harness import GRAPH, Choice, Effort, measure
from benchmarks.sizes import Scale
from benchmarks.summary import measured_lines

Item = tuple[str, Callable[[], str]]
BATCHES = (32, 256, 8)  # what says most comes first: a part may be killed before its end
STEP_BATCHES = (32, 256, 16)
EVALUATED = 250  # rows, seven in ten of which are a whole number
LAYER = Effort(0.3, 7, 3)
MODEL = Effort(0.0, 7, 3)
TOY = Effort(0.0, 1, 0)
ADAPTERS = ("frozen nn.Linear", "PEFT LoRA", "PEFT DoRA", "triton")
COMPILED = ("official compiled", "triton")


def timed(label: str, level: str, shape: Shape, scale: Scale, out: Path, choice: Choice) -> Item:
    """Measure one case of a level when it is called: rows to the file of the level, the same in words."""

    def run() -> str:
        module = importlib.import_module(f"benchmarks.levels.{level}")
        short = choice._replace(effort=TOY) if scale.smoke else choice
        case, found, _ = measure(module, shape, scale, short)
        if not found:
            raise NotHereError("the baseline was not captured as a CUDA graph")
        rows.append(found, out)
        absent = [f"  {name}: not timed: {reason}" for name, reason in case.absent.items() if asked(choice, name)]
        return "\n".join(["", *measured_lines(found), *absent])

    return label, run


def asked(choice: Choice, provider: str) -> bool:
    """Whether a provider was to be measured."""
    return choice.providers is None or provider in choice.providers


def modes(scale: Scale, *names: str) -> tuple[str, ...] | None:
    """How providers are called on a GPU; a CPU has one way."""
    return names if scale.device == "cuda" else None


def projection(index: int, providers: tuple[str, ...], batches: tuple[int, ...]) -> Callable[..., Iterator[Item]]:
    """One projection with dropout and dX, a case per batch; `index` is a row of `sizes.WIDTHS`."""

    def items(scale: Scale, out: Path) -> Iterator[Item]:
        from benchmarks.levels.projection import shape_of

        width = sizes.TOYS[0] if scale.smoke else sizes.WIDTHS[index]
        whole = not scale.smoke or (index == 0 and len(providers) > len(COMPILED))
        chosen = providers if whole else providers[:1]  # on one toy, all of them once
        for batch in (2,) if scale.smoke else batches:
            choice = Choice(chosen, modes(scale, "eager", GRAPH), LAYER)
            shape = shape_of(width, batch, sizes.DROPOUT, True)
            yield timed(f"batch {batch}", "projection", shape, scale, out, choice)

    return items


def build(scale: Scale, out: Path) -> Iterator[Item]:
    """The eight W_eff of ViT-B/16's recipe, and the way back from their gradients."""
    from benchmarks.levels import operations

    for shape in operations.shapes(scale):
        if shape["operation"] in ("build", "build backward"):
            choice = Choice(("official", "triton"), modes(scale, "eager"), LAYER)
            yield timed(shape["operation"], "operations", shape, scale, out, choice)


def library() -> str:
    """The CLIP there is: transformers' or open_clip's; `NotHereError` without either."""
    for name, family in (("transformers", "Hugging Face"), ("open_clip", "open_clip")):
        if importlib.util.find_spec(name):
            return family
    raise NotHereError("neither transformers nor open_clip is installed")


def model_items(cases: Callable[[str, Scale], Iterator[tuple[str, str, dict[str, Any], Choice]]]) -> Any:
    """Items of cases that need a whole CLIP: (label, level, shape, choice) of the library there is."""

    def items(scale: Scale, out: Path) -> Iterator[Item]:
        for label, level, shape, choice in cases(library(), scale):
            shape = {"model": "toy" if scale.smoke else "ViT-B/16", **shape}
            yield timed(label, level, shape, scale, out, choice)

    return items


def steps(mode: str) -> Callable[..., Iterator[Item]]:
    """Training steps without savings, eagerly or as a CUDA graph."""

    def cases(family: str, scale: Scale) -> Iterator[tuple[str, str, dict[str, Any], Choice]]:
        for batch in (2,) if scale.smoke else STEP_BATCHES:
            layers = 1 if scale.smoke else 2
            shape = {"library": family, "adapted_layers": layers, "batch": batch, "dropout": sizes.DROPOUT}
            choice = Choice(("frozen + head", "triton"), modes(scale, mode), MODEL)
            yield f"batch {batch}, {mode}", "training_step", shape, choice

    return model_items(cases)


def saved_steps(family: str, scale: Scale) -> Iterator[tuple[str, str, dict[str, Any], Choice]]:
    """Training steps with 70 % of the rows missing a modality: nothing saved, all, all with cached prefixes."""
    from benchmarks.levels import savings

    for batch in (8,) if scale.smoke else STEP_BATCHES:
        common = {"library": family, "missing": savings.RATE}
        choice = Choice((savings.OFF, "patched, all", savings.CACHED), modes(scale, "eager"), MODEL)
        yield f"batch {batch}", "savings", {"work": savings.STEP, **common, "batch": batch, "dropout": 0.1}, choice


def evaluation(family: str, scale: Scale) -> Iterator[tuple[str, str, dict[str, Any], Choice]]:
    """Inference of plain CLIP, with 70 % of the rows missing a modality; then patched and merged with none."""
    from benchmarks.levels import savings

    batch = 6 if scale.smoke else EVALUATED
    some = Choice(("patched, 70 % both missing",), modes(scale, "eager"), MODEL)
    shape = {"work": savings.INFERENCE, "library": family, "missing": savings.RATE, "batch": batch}
    yield f"batch {batch}, 70 % missing", "savings", shape, some
    whole = Choice(("patched", "merged"), modes(scale, "eager"), MODEL)
    yield f"batch {batch}", "inference", {"library": family, "batch": batch}, whole
