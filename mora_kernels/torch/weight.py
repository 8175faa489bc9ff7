"""W_eff by its factorisation: `build` makes (u, U, V), `compose` makes W * u + U V^T, equation (3).

Read top to bottom: the branches' norms, the two autograd functions, the public op.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mora_kernels.factors import Factors
from mora_kernels.numerics import NORM_FLOOR, accumulation_dtype, full_precision, total_gram


def thin_product(wide: Tensor, thin: Tensor) -> Tensor:
    """Return `wide @ thin` for a thin right factor as (thin^T wide^T)^T: several times as fast on a CPU."""
    return (thin.T @ wide.T).T


def branch_norm(weight: Tensor, left: Tensor, right: Tensor, alpha: float) -> Tensor:
    """Return the clamped column norms [in] of `weight + alpha left right^T`.

    The squares are summed directly: the expanded form |w|^2 + 2 alpha <w, c> + alpha^2 |c|^2 cancels.
    """
    moved = torch.addmm(weight, left, right.T, alpha=alpha)
    return torch.linalg.vector_norm(moved, dim=0).clamp_(min=NORM_FLOOR)


def branch_backward(
    weight: Tensor,
    left: Tensor,
    right: Tensor,
    norm: Tensor,
    magnitude: Tensor,
    grads: tuple[Tensor, Tensor, Tensor],
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of (left, right, magnitude) of one branch, equation (4).

    `grads` are those of u [in], of `left` as U's columns [out, r], and of V's columns alpha p right [in, r].
    """
    grad_u, grad_left, grad_v = grads
    scale = magnitude / norm
    grad_scale = grad_u + alpha * (right * grad_v).sum(dim=1)
    through_norm = torch.where(norm > NORM_FLOOR, -grad_scale * scale / norm.square(), 0.0)[:, None]
    weighted = through_norm * right
    grad_left = grad_left + alpha * (thin_product(weight, weighted) + alpha * left @ (right.T @ weighted))
    pulled = thin_product(weight.T, left) + alpha * right @ (left.T @ left)
    grad_right = alpha * (scale[:, None] * grad_v + through_norm * pulled)
    return grad_left, grad_right, grad_scale / norm


def thin_factors(one: Factors, gram: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Return u [in], U [out, r], V [in, r] and the norms of each branch, in the dtype of `gram`."""
    dtype, alpha = gram.dtype, one.alpha
    base, shared, magnitude = one.weight.to(dtype), one.common.to(dtype), one.common_magnitude.to(dtype)
    left = one.out_side.to(dtype) @ gram
    norm = branch_norm(base, left, shared, alpha)
    scale = magnitude / norm
    u, lefts, rights, norms = scale, [left], [alpha * scale[:, None] * shared], [norm]
    if one.specific_a is not None and one.specific_b is not None and one.specific_magnitude is not None:
        a, b = one.specific_a.to(dtype), one.specific_b.to(dtype)
        norm = branch_norm(base, b.T, a, alpha)
        scale = one.specific_magnitude.to(dtype) / norm
        u = u + scale
        lefts.append(b.T)
        rights.append(alpha * scale[:, None] * a)
        norms.append(norm)
    return u, torch.cat(lefts, dim=1), torch.cat(rights, dim=1), norms


def factor_gradients(
    one: Factors, gram: Tensor, norms: Sequence[Tensor], grads: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Return the gradient of G and those of `one.own` from those of (u, U, V), in the dtype of `gram`."""
    dtype, rank, alpha = gram.dtype, one.common.shape[1], one.alpha
    base, shared, (grad_u, grad_left, grad_right) = one.weight.to(dtype), one.common.to(dtype), grads
    outer = one.out_side.to(dtype)
    common_grads = (grad_u, grad_left[:, :rank], grad_right[:, :rank])
    left, right, magnitude = branch_backward(
        base, outer @ gram, shared, norms[0], one.common_magnitude.to(dtype), common_grads, alpha
    )
    grad_gram, moved = outer.T @ left, left @ gram.T
    grad_common, grad_out = (right + moved, None) if one.common_out is None else (right, moved)
    if one.specific_a is None or one.specific_b is None or one.specific_magnitude is None:
        return grad_gram, (grad_common, None, None, magnitude, None, grad_out)
    specific_grads = (grad_u, grad_left[:, rank:], grad_right[:, rank:])
    a, b, specific = one.specific_a.to(dtype), one.specific_b.to(dtype), one.specific_magnitude.to(dtype)
    left, right, specific = branch_backward(base, b.T, a, norms[1], specific, specific_grads, alpha)
    return grad_gram, (grad_common, right, left.T, magnitude, specific, grad_out)


class Build(torch.autograd.Function):
    """(u, U, V) of one projection from its frozen weight and its factors; all in the accumulation dtype."""

    @staticmethod
    def forward(ctx: Any, alpha: float, weight: Tensor, gram: Tensor, *own: Any) -> tuple[Tensor, Tensor, Tensor]:
        u, left, right, norms = thin_factors(Factors.of(weight, alpha, own), gram)
        ctx.save_for_backward(weight, gram, *own, *norms)
        ctx.alpha, ctx.count = alpha, len(own)
        return u, left, right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        weight, gram, *rest = ctx.saved_tensors
        own, norms = rest[: ctx.count], rest[ctx.count :]
        with full_precision(weight):
            grad_gram, results = factor_gradients(Factors.of(weight, ctx.alpha, own), gram, norms, grads)
        pairs = zip(own, results, strict=True)
        cast = (None if value is None else value.to(like.dtype) for like, value in pairs)
        return None, None, grad_gram, *cast


def compose(weight: Tensor, u: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Return W * u + U V^T [out, in] rounded once to `dtype`, equation (3)."""
    return torch.addmm(weight.to(u.dtype) * u, left, right.T).to(dtype)


class Compose(torch.autograd.Function):
    """W_eff from (u, U, V), for those who want the weight itself; its gradient is dense."""

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
            return None, (grad * weight.to(u.dtype)).sum(dim=0), grad @ right, grad.T @ left


def build(one: Factors) -> tuple[Tensor, Tensor, Tensor]:
    """Return u [in], U [out, r], V [in, r] with r = r_c + r_s, in the accumulation dtype of `weight`."""
    gram = total_gram(one.common, one.other_common).to(accumulation_dtype(one.weight))
    return Build.apply(one.alpha, one.weight.detach(), gram, *one.own)


def effective_weight(one: Factors) -> Tensor:
    """Return equation (1) [out, in] in `weight`'s dtype."""
    with full_precision(one.weight):
        return Compose.apply(one.weight.detach(), *build(one))
