"""mora-kernels itself: which of its backends a run can time."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

import mora
from benchmarks.sizes import Scale
from mora_kernels import backend as backends

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


def within_keeping(model: nn.Module, run: Callable[[], Result]) -> Callable[[], Result]:
    """`run` in one `mora.keeping` block that lasts from call to call, whatever is called between."""
    context, block = contextvars.copy_context(), mora.keeping(model)
    context.run(block.__enter__)

    def kept(block: object = block) -> Result:
        return context.run(run)

    return kept
