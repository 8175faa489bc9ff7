"""mora-kernels itself: which of its backends a run can time."""

from __future__ import annotations

import torch

from benchmarks.sizes import Scale
from mora_kernels import backend as backends

BACKENDS = ("torch", "triton")


def why_not(backend: str, scale: Scale) -> str:
    """Why a backend is left out of a run, or an empty string."""
    if backend == "triton" and scale.device == "cpu" and not scale.smoke:
        return "Triton has no CPU compiler, and its interpreter is for tests, not for timing"
    try:
        backends.explain(backend, torch.device(scale.device), torch.float32)
    except RuntimeError as error:
        return str(error).partition("cannot run here: ")[2].partition(";")[0]
    return ""
