"""Projections of one x and one kind (q, k, v of an attention) as one node of autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mora_kernels.built import Values
from mora_kernels.numerics import accumulation_dtype, full_precision


def together(
    x: Tensor, apart: bool, engine: Any, indices: tuple[int, ...], biases: Sequence[Tensor | None]
) -> tuple[tuple[Tensor, ...], Tensor, Tensor | None]:
    """Return y of P projections, x as rows, and x V if it was made.

    x is [P, ..., in] where `apart`, a copy for each; else [..., in].
    """
    rows = x.reshape(len(indices) if apart else 1, -1, x.shape[-1])
    cast = [bias if bias is None or bias.dtype == x.dtype else bias.detach().to(x.dtype) for bias in biases]
    products, read = engine.products(indices, rows, cast)
    shape = x.shape[1 if apart else 0 : -1]
    # Neighbours in memory perhaps, but no views: a caller may change one in place.
    return tuple(y.view(*shape, y.shape[-1]).data for y in products), rows, read


class Together(torch.autograd.Function):
    """y = x W_eff^T + b of P projections in the accumulation dtype; all of `thin` need a gradient.

    `rest` are P biases, or None, and P outputs of the node that all projections of a group share.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, apart: bool, values: Values, indices: tuple[int, ...], *rest: Any) -> Any:
        biases = rest[: len(indices)]
        y, rows, read = together(x, apart, values.engine, indices, biases)
        ctx.save_for_backward(rows, read)
        ctx.values, ctx.indices, ctx.stamps = values, indices, [values.stamp(index) for index in indices]
        ctx.shape, ctx.bias_dtypes = x.shape, [None if bias is None else bias.dtype for bias in biases]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        values, indices, count = ctx.values, ctx.indices, len(ctx.indices)
        needs_x, needs_bias = ctx.needs_input_grad[0], ctx.needs_input_grad[4 : 4 + count]
        for index, stamp in zip(indices, ctx.stamps, strict=True):
            values.see_to(index, stamp, later=True)
        rows, read = ctx.saved_tensors
        grad = grads[0] if count == 1 else torch.cat(grads) if grads[0].dim() > 1 else torch.stack(grads)
        grad = grad.reshape(count, rows.shape[1], grad.shape[-1])
        with full_precision(grad):
            grad_x, flat = values.engine.products_backward(indices, grad, rows, read, needs_x)
            if needs_x:
                grad_x = (grad_x if len(rows) == count else grad_x.sum(dim=0)).view(ctx.shape)
            grad_biases: list[Tensor | None] = [None] * count
            if any(needs_bias):
                sums = grad.sum(dim=1, dtype=accumulation_dtype(grad))
                each = zip(sums, ctx.bias_dtypes, needs_bias, strict=True)
                grad_biases = [one.to(dtype) if needed else None for one, dtype, needed in each]
        return grad_x, None, None, None, *grad_biases, *flat.unbind()
