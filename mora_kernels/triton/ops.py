"""The kernels as torch operators: opaque to the compiler, which sees shapes and strides and keeps the kernels.

The implementations import Triton when they first run, so this module is importable, and traceable, where Triton is not
installed. Gradients live in `functional.py`, outside; calling an operator with a tensor that needs one is an error,
since an opaque operator would silently return none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NAMESPACE = "mora_kernels"
FACTORS = (
    "Tensor? specific_a, Tensor? specific_b, Tensor common_magnitude, Tensor? specific_magnitude, Tensor? common_out, "
    "float alpha"
)
SCHEMAS = {
    "build": f"(Tensor weight, Tensor common, Tensor gram, {FACTORS}, ScalarType dtype) -> (Tensor, Tensor, Tensor)",
    "build_backward": f"(Tensor grad, Tensor thin, Tensor saved, Tensor weight, Tensor common, {FACTORS})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "thin_gradient": "(Tensor dense, Tensor weight, Tensor thin) -> Tensor",
    "dropout": "(Tensor x, Tensor seed, float p, int copies, ScalarType dtype, Tensor? mask) -> Tensor[]",
    "dropout_backward": "(Tensor[] grads, Tensor seed, float p, ScalarType dtype, Tensor? mask) -> Tensor",
}

library = torch.library.Library(NAMESPACE, "DEF")


def launcher(name: str) -> Any:
    """Return the function of this package that launches operator `name`; imports Triton."""
    if name.startswith("build"):
        import mora_kernels.triton.build.launchers as module
    elif name.startswith("dropout"):
        import mora_kernels.triton.dropout as module  # type: ignore[no-redef]
    else:
        import mora_kernels.triton.gradient as module  # type: ignore[no-redef]
    return getattr(module, name)


def implementation(name: str) -> Any:
    """Return the device implementation of an operator."""

    def run(*arguments: Any) -> Any:
        return launcher(name)(*arguments)

    return run


def guard(name: str) -> Any:
    """Return the Autograd implementation of an operator: refuse to drop a gradient silently, else go on below."""

    def run(*arguments: Any) -> Any:
        flat = [part for argument in arguments for part in (argument if isinstance(argument, list) else [argument])]
        if torch.is_grad_enabled() and any(isinstance(part, Tensor) and part.requires_grad for part in flat):
            raise RuntimeError(
                f"{NAMESPACE}::{name} has no gradient of its own: call mora_kernels.mora_linear or effective_weight"
            )
        with torch._C._AutoDispatchBelowAutograd():
            return getattr(getattr(torch.ops, NAMESPACE), name).default(*arguments)

    return run


def fake_build(
    weight: Tensor, common: Tensor, gram: Tensor, specific_a: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes of `build`."""
    (rows, columns), common_rank = weight.shape, common.shape[1]
    specific = 0 if specific_a is None else specific_a.shape[1]
    rank = common_rank + specific
    thin = weight.new_empty(columns + (rows + columns) * rank, dtype=torch.float32)
    saved = weight.new_empty(columns * (2 + rank + common_rank) + common_rank**2, dtype=torch.float32)
    return thin, saved, weight.new_empty((rows, columns), dtype=rest[-1])


def fake_build_backward(
    grad: Tensor, thin: Tensor, saved: Tensor, weight: Tensor, common: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    """Shapes of `build_backward`."""
    rank = common.shape[1]
    parts = [common, saved.new_empty((rank, rank)), *rest[:-1]]
    return tuple(saved.new_empty(0) if part is None else part.new_empty(part.shape) for part in parts)


def fake_thin_gradient(dense: Tensor, weight: Tensor, thin: Tensor) -> Tensor:
    """Shape of `thin_gradient`."""
    return torch.empty_like(thin)


def fake_dropout(
    x: Tensor, seed: Tensor, p: float, copies: int, dtype: torch.dtype, mask: Tensor | None
) -> list[Tensor]:
    """Shapes of `dropout`."""
    return [x.new_empty(x.shape, dtype=dtype) for _ in range(copies)]


def fake_dropout_backward(
    grads: list[Tensor], seed: Tensor, p: float, dtype: torch.dtype, mask: Tensor | None
) -> Tensor:
    """Shape of `dropout_backward`."""
    return grads[0].new_empty(grads[0].shape, dtype=dtype)


FAKES = {
    "build": fake_build,
    "build_backward": fake_build_backward,
    "thin_gradient": fake_thin_gradient,
    "dropout": fake_dropout,
    "dropout_backward": fake_dropout_backward,
}

for op, schema in SCHEMAS.items():
    library.define(op + schema)
    for key in ("CPU", "CUDA"):
        library.impl(op, implementation(op), key)
    library.impl(op, guard(op), "Autograd")
    torch.library.register_fake(f"{NAMESPACE}::{op}", FAKES[op], lib=library)  # type: ignore[arg-type]
