"""y = x W_eff^T + b, and the way back to (u, U, V) without a dense weight gradient; thin factors are rows.

P projections of one x and one kind go through the same operations; only the products with a W go one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mora_kernels.factors import Factors
from mora_kernels.numerics import accumulation_dtype, full_precision
from mora_kernels.torch.layout import Weights, cast, products
from mora_kernels.torch.terms import Thin
from mora_kernels.torch.weight import build, compose


def is_narrow(rows: int, weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether so few rows of x in `dtype` take less work by (x * u) W^T + (x V) U^T than W_eff and its product take.

    In the accumulation dtype only: in half precision W_eff is what is rounded, once.
    """
    return rows < weight.shape[0] and dtype == weight.dtype == accumulation_dtype(weight)


def narrow_products(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], thin: Thin
) -> tuple[Tensor, Tensor]:
    """Return y = (x * u) W^T + (x V) U^T + b [P, M, out] and x V [P, M, R] without any W_eff, of a narrow x.

    Args:
        x: [P, M, in], or [1, M, in] for all.
        weights, biases: of P projections; a bias in the dtype of x, or None.
        thin: u [P, in], U^T [P, R, out], V^T [P, R, in].
    """
    u, left, right = thin
    moved, x = x * u[:, None], x.expand(len(weights), -1, -1)
    read, y = torch.bmm(x, right.mT), x.new_empty(len(weights), x.shape[1], left.shape[2])
    for rows, weight, bias, out in zip(moved.unbind(), weights, biases, y.unbind(), strict=True):
        if bias is None:
            torch.mm(rows, weight.T, out=out)
        else:
            torch.addmm(bias, rows, weight.T, out=out)
    return y.baddbmm_(read, left), read


def linear_gradients(
    grad: Tensor, x: Tensor, weights: Weights, thin: Thin, needs_x: bool, read: Tensor | None = None
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """Return the gradients of x [P, M, in], u [P, in], U^T [P, R, out] and V^T [P, R, in] from dY [P, M, out].

    Z = dY W gives two of them, t = colsum(x * Z) for u and dX = u * Z + (dY U) V^T: one product of full size, where a
    dense dW beside dX would be a second one.

    Args:
        grad: dY [P, M, out].
        x: [P, M, in], or [1, M, in] for all.
        weights: W of P projections.
        thin: u [P, in], U^T [P, R, out], V^T [P, R, in].
        needs_x: whether dX is wanted.
        read: x V [P, M, R], where it is known.
    """
    u, left, right = thin
    wide, grad_wide = cast(x, u.dtype), cast(grad, u.dtype)
    wide = wide.expand(len(weights), -1, -1)
    pulled = cast(products(grad, weights), u.dtype)
    read = torch.bmm(wide, right.mT) if read is None else read
    turned = torch.bmm(grad_wide, left.mT)  # dY U [P, M, R]
    grad_u = (wide * pulled).sum(dim=1)
    grad_left, grad_right = torch.bmm(read.mT, grad_wide), torch.bmm(turned.mT, wide)
    if not needs_x:
        return None, grad_u, grad_left, grad_right
    return cast(pulled.mul_(u[:, None]).baddbmm_(turned, right), x.dtype), grad_u, grad_left, grad_right


class Linear(torch.autograd.Function):
    """y = x W_eff^T + b with W_eff = W * u + U V^T made on the way and thrown away again, or not made at all.

    Saved: x, W (a parameter, no copy) and the thin u, U, V.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, u: Tensor, left: Tensor, right: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight, u, left, right)
        ctx.bias_dtype = None if bias is None else bias.dtype
        bias = None if bias is None else bias.to(x.dtype)
        rows = x.reshape(1, -1, x.shape[-1])
        if not torch.compiler.is_compiling() and is_narrow(rows.shape[1], weight, x.dtype):
            y, _ = narrow_products(rows, [weight], [bias], (u[None], left[None], right[None]))
            return y.view(*x.shape[:-1], weight.shape[0]).data  # no view: a caller may change it in place
        return F.linear(x, compose(weight, u, left, right, x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, u, left, right = ctx.saved_tensors
        needs_x, _, needs_bias, *needs_thin = ctx.needs_input_grad
        rows, grad_rows = x.reshape(1, -1, x.shape[-1]), grad.reshape(1, -1, grad.shape[-1])
        grad_x: Tensor | None = None
        grads: list[Tensor | None] = [None, None, None]
        with full_precision(x):
            if any(needs_thin):
                thin = u[None], left[None], right[None]
                grad_x, *found = linear_gradients(grad_rows, rows, [weight], thin, needs_x)
                grads = [one[0] for one in found]
            elif needs_x:
                grad_x = grad_rows @ compose(weight, u, left, right, grad.dtype)
            grad_bias = grad_rows.sum(dim=(0, 1), dtype=u.dtype).to(ctx.bias_dtype) if needs_bias else None
        return None if grad_x is None else grad_x.view(x.shape), None, grad_bias, *grads


def mora_linear(x: Tensor, bias: Tensor | None, one: Factors, dropout_p: float = 0.0, training: bool = True) -> Tensor:
    """Return equation (2) [..., out] in `x`'s dtype."""
    with full_precision(x):
        return Linear.apply(F.dropout(x, dropout_p, training), one.weight.detach(), bias, *build(one))
