"""W_eff by its factorisation: `build` makes (u, U, V), `compose` makes W * u + U V^T, equation (3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mora_kernels.factors import Factors
from mora_kernels.numerics import accumulation_dtype, full_precision, total_gram
from mora_kernels.torch.layout import cast
from mora_kernels.torch.terms import Terms, Thin, gradients, thin_factors


class Build(torch.autograd.Function):
    """(u, U^T, V^T) of one projection from its frozen weight and its factors; all in the accumulation dtype."""

    @staticmethod
    def forward(ctx: Any, alpha: float, weight: Tensor, gram: Tensor, *own: Any) -> Thin:
        (u, left, right), terms = thin_factors([Factors.of(weight, alpha, own)], gram[None], [weight])
        ctx.save_for_backward(weight, *terms, *own)
        ctx.alpha = alpha
        return u[0], left[0], right[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        weight, gram, outer, left, right, norms, scale, pulled, *own = ctx.saved_tensors
        u, *rows = (grad[None] for grad in grads)
        with full_precision(weight):
            terms = Terms(gram, outer, left, right, norms, scale, pulled)
            grad_gram, *found = gradients([Factors.of(weight, ctx.alpha, own)], terms, (u, rows[0], rows[1]), [weight])
        back = (None if value is None else value[0].to(like.dtype) for like, value in zip(own, found, strict=True))
        return None, None, None if grad_gram is None else grad_gram[0], *back


def compose(weight: Tensor, u: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Return W * u + U V^T [out, in] rounded once to `dtype`, equation (3); U and V as rows."""
    return cast((cast(weight, u.dtype) * u).addmm_(left.T, right), dtype)


class Compose(torch.autograd.Function):
    """W_eff from (u, U^T, V^T), for those who want the weight itself; its gradient is dense."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, u: Tensor, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(weight, u, left, right)
        return compose(weight, u, left, right, weight.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, u, left, right = ctx.saved_tensors
        with full_precision(weight):
            grad = grad.to(u.dtype)
            return None, (grad * weight.to(u.dtype)).sum(dim=0), right @ grad.T, left @ grad


def build(one: Factors) -> Thin:
    """Return u [in], U^T [R, out], V^T [R, in] with R = r_c + r_s, in the accumulation dtype of `weight`."""
    gram = total_gram(one.common, one.other_common, one.gram_scale).to(accumulation_dtype(one.weight))
    return Build.apply(one.alpha, one.weight.detach(), gram, *one.own)


def effective_weight(one: Factors) -> Tensor:
    """Return equation (1) [out, in] in `weight`'s dtype."""
    with full_precision(one.weight):
        return Compose.apply(one.weight.detach(), *build(one))
