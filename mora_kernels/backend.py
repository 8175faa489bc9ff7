"""The one rule that picks a backend: by name, or for "auto" by device and dtype; never as a rescue."""

from __future__ import annotations

import functools
import importlib.util
import os
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import torch

import mora_kernels.reference
import mora_kernels.torch
import mora_kernels.triton  # imports no Triton: its first kernel does

MODULES: dict[str, ModuleType] = {
    "reference": mora_kernels.reference,
    "torch": mora_kernels.torch,
    "triton": mora_kernels.triton,
}
NAMES = ("auto", *MODULES)


def interpreted() -> bool:
    """Return whether Triton runs on the CPU in this process: the flag it read, or will read, at its import."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@functools.cache
def installed() -> bool:
    """Return whether there is a Triton to import; does not import it."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def interpreter_problem() -> str:
    """Return why Triton's interpreter cannot run beside the NumPy there is, or an empty string."""
    try:
        triton, numpy = (tuple(map(int, version(name).split(".")[:2])) for name in ("triton", "numpy"))
    except (PackageNotFoundError, ValueError):  # built under another name or version: nothing is known of it
        return ""
    if triton < (3, 7) and numpy >= (2, 4):
        return (
            f"Triton {version('triton')}'s interpreter cannot run with NumPy {version('numpy')} "
            "(expected numpy<2.4, or triton>=3.7)"
        )
    return ""


def missing(device_type: str, index: int, dtype_name: str) -> str:
    """Return what keeps the triton backend from running on a device for a dtype, or an empty string."""
    if not installed():
        return "Triton is not installed"
    if dtype_name == "float64":
        return "the fused kernels compute in float32, not float64"
    if device_type == "cpu":
        if not interpreted():
            return "Triton has no CPU compiler (TRITON_INTERPRET=1, set before the start, interprets its kernels there)"
        if dtype_name == "bfloat16":
            return "Triton's interpreter computes bfloat16 wrongly"
        return interpreter_problem()
    if device_type != "cuda":
        return f"there are no fused kernels for {device_type}"
    if not torch.version.hip and torch.cuda.get_device_capability(index) < (8, 0):
        return f"compute capability {torch.cuda.get_device_capability(index)} is below 8.0"
    return ""


# What `torch.compiler.assume_constant_result` sets; calling that would import the compiler, and Triton with it.
missing._dynamo_marked_constant = True  # type: ignore[attr-defined]


def obstacle(device: torch.device, dtype: torch.dtype) -> str:
    """Return why the triton backend cannot run on `device` for `dtype`, or an empty string."""
    index = -1 if device.index is None else device.index
    if index < 0 and device.type == "cuda":
        index = torch.cuda.current_device()
    return missing(device.type, index, str(dtype).removeprefix("torch."))


def explain(backend: str, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[str, str]:
    """Return (name, reason): the backend that runs for `backend` on `device` with weights of `dtype`, and why.

    Raises:
        ValueError: `backend` is unknown.
        RuntimeError: `backend` was asked for by name and cannot run; the message says why.
    """
    if backend not in NAMES:
        raise ValueError(f"backend: got {backend!r}, expected one of {', '.join(map(repr, NAMES))}")
    if backend == "triton":
        problem = obstacle(device, dtype)
        if problem:
            raise RuntimeError(f"backend: got 'triton', which cannot run here: {problem}; expected 'auto' or 'torch'")
    if backend != "auto":
        return backend, "asked for by name"
    if device.type != "cuda":
        return "torch", f"the factorised PyTorch path runs on {device.type}"
    problem = obstacle(device, dtype)
    return (
        ("torch", f"the fused kernels cannot run: {problem}")
        if problem
        else ("triton", "the fused kernels run on cuda")
    )


def load(backend: str, device: torch.device, dtype: torch.dtype = torch.float32) -> ModuleType:
    """Return the module with `gram`, `effective_weight` and `mora_linear` of the backend that `explain` names."""
    return MODULES[explain(backend, device, dtype)[0]]


def engine(name: str) -> Any:
    """Return the class that builds a whole group: "torch" or "triton"."""
    if name == "triton":
        from mora_kernels.triton.group import Engine as Fused

        return Fused
    from mora_kernels.torch.group import Engine

    return Engine
