"""One projection with the fused kernels: the autograd functions around the operators, then the public operations.

Every function is written so that the compiler can trace it: the operators are opaque, the rest is plain PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mora_kernels.factors import Factors
from mora_kernels.numerics import dense_gradient, full_precision, total_gram
from mora_kernels.numerics import gram as gram
from mora_kernels.triton import ops as ops

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Build(torch.autograd.Function):
    """The flat thin tensors [u | U | V'] of one projection, and its W_eff as a by-product without a gradient."""

    @staticmethod
    def forward(ctx: Any, alpha: float, dtype: torch.dtype, weight: Tensor, gram: Tensor, *factors: Any) -> Any:
        common, *rest = factors
        thin, saved, effective = torch.ops.mora_kernels.build(weight, common, gram, *rest, alpha, dtype)
        ctx.save_for_backward(thin, saved, weight, *factors)
        ctx.alpha = alpha
        ctx.mark_non_differentiable(effective)
        return thin, effective

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> Any:
        thin, saved, weight, *factors = ctx.saved_tensors
        grads = torch.ops.mora_kernels.build_backward(grad, thin, saved, weight, *factors, ctx.alpha)
        common, gram, *rest = grads
        rest = [None if part is None else value for part, value in zip(factors[1:], rest, strict=True)]
        return None, None, None, gram, common, *rest


class Dropout(torch.autograd.Function):
    """dropout(x) in another dtype, the mask drawn from a seed on the device; `mask` replaces it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seed: Tensor, p: float, dtype: torch.dtype, mask: Tensor | None) -> Tensor:
        ctx.save_for_backward(seed, mask)
        ctx.p, ctx.dtype = p, x.dtype
        return torch.ops.mora_kernels.dropout(x, seed, p, 1, dtype, mask)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        seed, mask = ctx.saved_tensors
        return torch.ops.mora_kernels.dropout_backward([grad], seed, ctx.p, ctx.dtype, mask), None, None, None, None


class Linear(torch.autograd.Function):
    """y = x W_eff^T + b by the library, with W_eff at hand; backward is b0 of docs/design.md."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, effective: Tensor, bias: Tensor | None, thin: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, effective, thin)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return F.linear(x, effective, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, effective, thin = ctx.saved_tensors
        needs_x, _, _, needs_bias, needs_thin = ctx.needs_input_grad
        grad_x = grad_bias = grad_thin = None
        with full_precision(x):
            if needs_x:
                grad_x = grad @ effective
            if needs_thin:
                dense = dense_gradient(grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1]))
                grad_thin = torch.ops.mora_kernels.thin_gradient(dense, weight, thin)
            if needs_bias:
                grad_bias = grad.reshape(-1, grad.shape[-1]).float().sum(dim=0).to(ctx.bias_dtype)
        return grad_x, None, None, grad_bias, grad_thin


class Attach(torch.autograd.Function):
    """W_eff as a differentiable function of the thin tensors it was made with."""

    @staticmethod
    def forward(ctx: Any, effective: Tensor, weight: Tensor, thin: Tensor) -> Tensor:
        ctx.save_for_backward(weight, thin)
        return effective.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        weight, thin = ctx.saved_tensors
        return None, None, torch.ops.mora_kernels.thin_gradient(grad.contiguous(), weight, thin)


def check_dtype(weight: Tensor) -> None:
    """Refuse what the kernels cannot compute."""
    if weight.dtype not in DTYPES:
        raise ValueError(
            f"weight: got dtype {weight.dtype}, expected float32, float16 or bfloat16 for backend 'triton'"
        )


def build(one: Factors, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return thin and W_eff in `dtype`."""
    check_dtype(one.weight)
    kinds = {part.dtype for part in one.own if part is not None}
    own = one.own if len(kinds) == 1 else [None if part is None else part.float() for part in one.own]
    gram = total_gram(one.common, one.other_common, one.gram_scale).float()
    return Build.apply(one.alpha, dtype, one.weight.detach(), gram, *own)


def effective_weight(one: Factors) -> Tensor:
    """Return equation (1) [out, in] in `weight`'s dtype."""
    with full_precision(one.weight):
        thin, effective = build(one, one.weight.dtype)
        return Attach.apply(effective, one.weight.detach(), thin)


def mora_linear(
    x: Tensor,
    bias: Tensor | None,
    one: Factors,
    dropout_p: float = 0.0,
    training: bool = True,
    mask: Tensor | None = None,
) -> Tensor:
    """Return equation (2) [..., out] in `x`'s dtype; `mask` [1, *x.shape] of bool replaces the drawn."""
    with full_precision(x):
        thin, effective = build(one, x.dtype)
        if training and dropout_p > 0:
            seed = torch.randint(0, 2**63 - 1, (1,), device=x.device, dtype=torch.int64)
            x = Dropout.apply(x, seed, dropout_p, x.dtype, mask)
        return Linear.apply(x, one.weight.detach(), effective, bias, thin)
