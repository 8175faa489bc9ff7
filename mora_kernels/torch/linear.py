"""y = x W_eff^T + b, and the way back to (u, U, V) without a dense weight gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mora_kernels.precision import full_precision
from mora_kernels.torch.weight import build, compose


class Linear(torch.autograd.Function):
    """y = x W_eff^T + b with W_eff = W * u + U V^T made on the way and thrown away again.

    Saved: x, W (a parameter, no copy) and the thin u, U, V. Backward costs one GEMM, Z = dY W, from which follow
    t = sum over rows of x * Z (the gradient of u) and dX = u * Z + (dY U) V^T; U and V get dY^T (x V) and x^T (dY U).
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
        needs_x, _, needs_bias, needs_u, needs_left, needs_right = ctx.needs_input_grad
        grad_x: Tensor | None = None
        grad_bias = grad_u = grad_left = grad_right = None
        with full_precision(x):
            rows, grad_rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
            wide, grad_wide = rows.to(u.dtype), grad_rows.to(u.dtype)
            pulled = grad_rows @ weight.to(grad_rows.dtype)
            thin = grad_wide @ left
            if needs_u:
                grad_u = (wide * pulled).sum(dim=0)
            if needs_left:
                grad_left = grad_wide.T @ (wide @ right)
            if needs_right:
                grad_right = wide.T @ thin
            if needs_x:
                grad_x = torch.addmm(pulled.to(u.dtype).mul_(u), thin, right.T).to(x.dtype).view(x.shape)
            if needs_bias:
                grad_bias = grad_wide.sum(dim=0).to(ctx.bias_dtype)
        return grad_x, None, grad_bias, grad_u, grad_left, grad_right


def mora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    common: Tensor,
    other_common: Sequence[Tensor] | None,
    specific_a: Tensor | None,
    specific_b: Tensor | None,
    common_magnitude: Tensor,
    specific_magnitude: Tensor | None,
    alpha: float,
    dropout_p: float = 0.0,
    training: bool = True,
) -> Tensor:
    """Return equation (2) [..., out] in `x`'s dtype."""
    with full_precision(x):
        thin = build(weight, common, other_common, specific_a, specific_b, common_magnitude, specific_magnitude, alpha)
        return Linear.apply(F.dropout(x, dropout_p, training), weight.detach(), bias, *thin)
