"""Where and how sums are made: the dtype to accumulate in, autocast kept out, Gram matrices, the floor of a norm.

The numerics contract (docs/design.md): column norms, Gram matrices, the thin factors and every gradient of a factor are
computed in the accumulation dtype; W_eff is rounded once to the dtype of the product it enters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

NORM_FLOOR = 1e-5
NOTHING: AbstractContextManager[Any] = nullcontext()


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """Return float64 for a float64 tensor, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which autocast is off on the device of `tensor`."""
    device = tensor.device.type
    if not torch.compiler.is_compiling() and not torch.is_autocast_enabled(device):
        return NOTHING  # to enter `torch.autocast` takes longer than some of the products
    return torch.autocast(device_type=device, enabled=False)


@contextmanager
def untracked(tensor: Tensor) -> Iterator[None]:
    """Within the block autograd records nothing, no tensor is made for inference only, and autocast is off."""
    with torch.inference_mode(False), torch.no_grad(), full_precision(tensor):
        yield


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which `nn.Linear` would multiply `x`: autocast's on its device if on, else that of `x`."""
    device = x.device.type
    if x.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def gram(factor: Tensor) -> Tensor:
    """Return `factor^T factor` [r, r] of a factor [d, r], in the accumulation dtype."""
    dtype = accumulation_dtype(factor)
    if factor.dtype == dtype and not torch.is_autocast_enabled(factor.device.type):
        return torch.mm(factor.t(), factor)  # a product so small that to enter a context takes as long
    with full_precision(factor):
        factor = factor if factor.dtype == dtype else factor.to(dtype)
        return torch.mm(factor.t(), factor)


def total_gram(common: Tensor, other_common: Sequence[Tensor] | None, scale: float = 1.0) -> Tensor:
    """Return G, the scaled sum of the others' Gram matrices [r_c, r_c]; the identity when `other_common` is None."""
    if other_common is None:
        return torch.eye(common.shape[1], dtype=accumulation_dtype(common), device=common.device)
    total = gram(other_common[0])
    for other in other_common[1:]:
        total = total + gram(other)
    return scaled(total, scale)


def scaled(gram: Tensor, scale: float) -> Tensor:
    """Return scale * gram; no operation for a scale of 1."""
    return gram if scale == 1.0 else gram * scale


def dense_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Return grad^T x [out, in], summed over the rows in the accumulation dtype and left in it.

    cuBLAS writes float32 from half-precision operands in one product; elsewhere the operands are widened.
    """
    dtype = accumulation_dtype(x)
    if x.dtype == dtype:
        return grad.T @ x
    if x.is_cuda and not torch.version.hip:
        return torch.mm(grad.T, x, out_dtype=dtype)
    return grad.T.to(dtype) @ x.to(dtype)
