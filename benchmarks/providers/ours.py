"""mora-kernels itself: which of its backends a run can time."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

import mora
from benchmarks.sizes import Scale
from mora_kernels import Group
from mora_kernels import backend as backends
from mora_kernels.torch.group import Engine

BACKENDS = ("torch", "triton")
Result = TypeVar("Result")


def why_not(backend: str, scale: Scale) -> str:
    """Why a backend is left out of a run, or an empty string."""
    if backend == "triton" and scale.device == "cpu" and not scale.smoke:
        return "Triton has no CPU compiler, and its interpreter is for tests, not for timing"
    try:
        backends.explain(backend, torch.device(scale.device), torch.float32)
    except RuntimeError as error:
        return str(error).partition("cannot run here: ")[2].partition(";")[0]
    return ""


def kept_by(group: Group) -> list[Tensor]:
    """The W_eff, and the copies of W, that a group holds between two calls."""
    found: list[Tensor | None] = []
    for state in group._states.values():
        engine = state.values.engine
        found += engine.effective
        if isinstance(engine, Engine):
            found += [kind.weights for kind, _ in engine.places]
    return [tensor for tensor in found if tensor is not None]


def within_keeping(model: nn.Module, run: Callable[[], Result]) -> Callable[[], Result]:
    """`run` in one `mora.keeping` block that lasts from call to call, whatever is called between."""
    context, block = contextvars.copy_context(), mora.keeping(model)
    context.run(block.__enter__)

    def kept(block: object = block) -> Result:
        return context.run(run)

    return kept
