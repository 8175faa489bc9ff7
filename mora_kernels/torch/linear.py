"""y = x W_eff^T + b, and the way back to (u, U, V) without a dense weight gradient; thin factors are rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mora_kernels.factors import Factors
from mora_kernels.numerics import full_precision
from mora_kernels.torch.terms import cast
from mora_kernels.torch.weight import build, compose


def linear_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, u: Tensor, left: Tensor, right: Tensor, needs_x: bool
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """Return the gradients of x [M, in], u [in], U^T [R, out] and V^T [R, in] from dY [M, out].

    Z = dY W gives two of them, t = colsum(x * Z) for u and dX = u * Z + (dY U) V^T: one product of full size, where a
    dense dW beside dX would be a second one.
    """
    wide, grad_wide = cast(x, u.dtype), cast(grad, u.dtype)
    pulled, thin = cast(grad @ cast(weight, grad.dtype), u.dtype), left @ grad_wide.T
    grad_u = (wide * pulled).sum(dim=0)
    grad_left, grad_right = (right @ wide.T) @ grad_wide, thin @ wide
    if not needs_x:
        return None, grad_u, grad_left, grad_right
    return cast(pulled.mul_(u).addmm_(thin.T, right), x.dtype), grad_u, grad_left, grad_right


class Linear(torch.autograd.Function):
    """y = x W_eff^T + b with W_eff = W * u + U V^T made on the way and thrown away again.

    Saved: x, W (a parameter, no copy) and the thin u, U, V.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, u: Tensor, left: Tensor, right: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight, u, left, right)
        ctx.bias_dtype = None if bias is None else bias.dtype
        effective = compose(weight, u, left, right, x.dtype)
        return F.linear(x, effective, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, u, left, right = ctx.saved_tensors
        needs_x, _, needs_bias, *needs_thin = ctx.needs_input_grad
        rows, grad_rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        grad_x: Tensor | None = None
        grads: list[Tensor | None] = [None, None, None]
        with full_precision(x):
            if any(needs_thin):
                grad_x, *grads = linear_gradients(grad_rows, rows, weight, u, left, right, needs_x)
            elif needs_x:
                grad_x = grad_rows @ compose(weight, u, left, right, grad.dtype)
            grad_bias = grad_rows.sum(dim=0, dtype=u.dtype).to(ctx.bias_dtype) if needs_bias else None
        return None if grad_x is None else grad_x.view(x.shape), None, grad_bias, *grads


def mora_linear(x: Tensor, bias: Tensor | None, one: Factors, dropout_p: float = 0.0, training: bool = True) -> Tensor:
    """Return equation (2) [..., out] in `x`'s dtype."""
    with full_precision(x):
        return Linear.apply(F.dropout(x, dropout_p, training), one.weight.detach(), bias, *build(one))
