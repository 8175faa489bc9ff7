"""The one rule that picks a backend: by name, or for "auto" by the device; never as a rescue."""

from __future__ import annotations

from types import ModuleType

import torch

import mora_kernels.reference
import mora_kernels.torch

MODULES: dict[str, ModuleType] = {"reference": mora_kernels.reference, "torch": mora_kernels.torch}
NAMES = ("auto", *MODULES)


def explain(backend: str, device: torch.device) -> tuple[str, str]:
    """Return (name, reason): the backend that runs for `backend` on `device`, and why.

    Raises ValueError when `backend` is unknown.
    """
    if backend not in NAMES:
        raise ValueError(f"backend: got {backend!r}, expected one of {', '.join(map(repr, NAMES))}")
    if backend != "auto":
        return backend, "asked for by name"
    return "torch", f"the factorised PyTorch path runs on {device.type}"


def load(backend: str, device: torch.device) -> ModuleType:
    """Return the module with `gram`, `effective_weight` and `mora_linear` of the backend that `explain` names."""
    return MODULES[explain(backend, device)[0]]
