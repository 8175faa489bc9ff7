"""Several W_eff of one frozen weight side by side: of every token that comes, each by one product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mora_kernels.built import Values
from mora_kernels.group import Group
from mora_kernels.numerics import accumulation_dtype, full_precision, product_dtype
from mora_kernels.validation import check_linear


class Beside(torch.autograd.Function):
    """x [W_eff_1; W_eff_2; ...]^T + b, [..., n out]; the way back to each thin is the engine's."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, values: Values, indices: tuple[int, ...], *thin: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x if any(ctx.needs_input_grad[4:]) else None)
        ctx.values, ctx.indices, ctx.stamps = values, indices, [values.stamp(index) for index in indices]
        ctx.bias_dtype = None if bias is None else bias.dtype
        return F.linear(x, stacked(values, indices), None if bias is None else bias.to(x.dtype).repeat(len(indices)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        values, indices = ctx.values, ctx.indices
        needs_x, needs_bias, _, _, *needs_thin = ctx.needs_input_grad
        for index, stamp, needs in zip(indices, ctx.stamps, needs_thin, strict=True):
            values.see_to(index, stamp, later=needs)
        (x,) = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_bias = None
        grad_thin: list[Tensor | None] = [None] * len(indices)
        with full_precision(grad):
            for place, each in enumerate(rows.chunk(len(indices), dim=1)):
                if needs_thin[place]:
                    inputs = x.reshape(-1, x.shape[-1])
                    _, found = values.engine.linear_backward(indices[place], each.contiguous(), inputs, False)
                    grad_thin[place] = found
            if needs_x:
                grad_x = (rows @ stacked(values, indices)).view(*grad.shape[:-1], -1)
            if needs_bias:
                total = rows.sum(dim=0, dtype=accumulation_dtype(rows))
                grad_bias = total.view(len(indices), -1).sum(dim=0).to(ctx.bias_dtype)
        return grad_x, grad_bias, None, None, *grad_thin


def stacked(values: Values, indices: Sequence[int]) -> Tensor:
    """W_eff of projections of one shape, [n out, in]."""
    return torch.cat([values.engine.whole(index) for index in indices])


def linears_beside(
    group: Group,
    indices: Sequence[int],
    x: Tensor,
    bias: Tensor | None = None,
    dropout_p: float = 0.0,
    training: bool = True,
) -> list[Tensor]:
    """Return equation (2) of one x by several projections of one shape and bias: one mask, and one product for all.

    For tokens of which each takes the result of one projection: one mask is as good as one for each then. A list of
    [..., out]; raises as `Group.linear` does.
    """
    dtype, weight = product_dtype(x), group.projections[indices[0]].weight
    check_linear(x, weight, bias, dropout_p)
    state = None if torch.compiler.is_compiling() else group._state(indices, dtype)
    if state is None:
        dropped = F.dropout(x, dropout_p, training)
        return group._functional(indices, dropped, [bias] * len(indices), 0.0, training)
    if dtype == x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"x: got dtype {x.dtype}, expected {weight.dtype}, that of weight (or run under autocast)")
    with full_precision(x):
        if training and dropout_p > 0:
            (x,) = state.values.engine.drop(x, dropout_p, 1, dtype, None)
        thin = [group._thin(state, index) for index in indices]
        product = Beside.apply(x.to(dtype), bias, state.values, tuple(indices), *thin)
    return list(product.chunk(len(indices), dim=-1))
