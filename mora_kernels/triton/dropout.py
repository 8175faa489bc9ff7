"""`dropout`: one read of x, one dropped and cast copy per projection; the mask comes from a seed and is never stored.

The seed lies in a device tensor filled by torch's generator: the same under `torch.manual_seed`, under activation
checkpointing (which restores the generator) and when a captured CUDA graph is replayed. Philox gives four numbers a
call; each serves another quarter of the columns of a tile, so that no number travels between threads. Seven rounds
pass every test of BigCrush (Salmon et al., SC 2011).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from mora_kernels.launches import launch
from mora_kernels.triton.configs import settings

ROUNDS = tl.constexpr(7)
MOST_COPIES = 4


@triton.jit
def keep(mask, quarter: tl.constexpr, numbers, copy, rows, cols, M, N, threshold, inside, EXPLICIT: tl.constexpr):
    """Return which elements survive: those of the explicit mask, or those whose 31-bit number reaches `threshold`."""
    if EXPLICIT:
        return tl.load(mask + (copy * M + rows)[:, None] * N + cols[None, :], mask=inside, other=0) != 0
    return (numbers[quarter] >> 1).to(tl.int32) >= threshold


@triton.jit
def dropout_kernel(
    x, y0, y1, y2, y3, seed_pointer, mask, M, N, threshold, scale,
    COPIES: tl.constexpr, BACKWARD: tl.constexpr, EXPLICIT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Forward: y_k = mask_k x scale. BACKWARD: x = sum over k of mask_k y_k scale (y_k: gradients, x: the result)."""
    ys = (y0, y1, y2, y3)
    rows = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    lanes = tl.program_id(1) * BN + tl.arange(0, BN)
    place = lanes[None, :].to(tl.uint32) + tl.zeros((BM, 1), tl.uint32)
    line = rows[:, None].to(tl.uint32) + tl.zeros((1, BN), tl.uint32)
    seed = tl.load(seed_pointer)
    for quarter in tl.static_range(4):
        cols = tl.program_id(1) * 4 * BN + quarter * BN + tl.arange(0, BN)
        inside = (rows < M)[:, None] & (cols < N)[None, :]
        offsets = rows[:, None] * N + cols[None, :]
        total = tl.zeros((BM, BN), tl.float32)
        if not BACKWARD:
            total = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32) * scale
        for copy in tl.static_range(COPIES):
            # The same call in every quarter: the compiler keeps one of the four.
            numbers = tl.philox(seed, place, line, place * 0 + copy, place * 0, ROUNDS)
            kept = keep(mask, quarter, numbers, copy, rows, cols, M, N, threshold, inside, EXPLICIT)
            if BACKWARD:
                grad = tl.load(ys[copy] + offsets, mask=inside, other=0.0).to(tl.float32)
                total += tl.where(kept, grad * scale, 0.0)
            else:
                tl.store(ys[copy] + offsets, tl.where(kept, total, 0.0).to(ys[copy].dtype.element_ty), mask=inside)
        if BACKWARD:
            tl.store(x + offsets, total.to(x.dtype.element_ty), mask=inside)


def draw_seed(device: torch.device) -> Tensor:
    """Return a fresh seed [1] on `device`, drawn from torch's generator there: one launch, no synchronisation."""
    return torch.randint(0, 2**63 - 1, (1,), device=device, dtype=torch.int64)


def run(x: Tensor, ys: Sequence[Tensor], seed: Tensor, p: float, mask: Tensor | None, backward: bool) -> None:
    """Launch the kernel over [M, N] matrices; `mask` [copies, M, N] of bool replaces the drawn one."""
    width = x.shape[-1]
    rows = x.numel() // width if width else 0
    if rows == 0:
        return
    pointers = [*ys, *[ys[0]] * (MOST_COPIES - len(ys))]
    options = settings("dropout", x.device)
    grid = (triton.cdiv(rows, options["BM"]), triton.cdiv(width, 4 * options["BN"]))
    threshold = min(round(p * 2**31), 2**31 - 1)
    launch(
        dropout_kernel, grid,
        x, *pointers, seed, seed if mask is None else mask.contiguous().view(torch.uint8), rows, width, threshold,
        1 / (1 - p), COPIES=len(ys), BACKWARD=backward, EXPLICIT=mask is not None, **options,
    )  # fmt: skip


def dropout(
    x: Tensor, seed: Tensor, p: float, copies: int, dtype: torch.dtype, mask: Tensor | None = None
) -> list[Tensor]:
    """Return `copies` tensors of `x`'s shape in `dtype`, each with its own mask, scaled by 1 / (1 - p)."""
    x = x.contiguous()
    ys = [torch.empty(x.shape, dtype=dtype, device=x.device) for _ in range(copies)]
    run(x, ys, seed, p, mask, backward=False)
    return ys


def dropout_backward(
    grads: Sequence[Tensor], seed: Tensor, p: float, dtype: torch.dtype, mask: Tensor | None = None
) -> Tensor:
    """Return the gradient of `x` in `dtype`: the masked, scaled sum of the copies' gradients."""
    grads = [grad.contiguous() for grad in grads]
    result = torch.empty(grads[0].shape, dtype=dtype, device=grads[0].device)
    run(result, grads, seed, p, mask, backward=True)
    return result


class Dropout(torch.autograd.Function):
    """One dropped copy of x per mask, in the compute dtype; the masks are drawn again in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, copies: int, dtype: torch.dtype, mask: Any) -> Any:
        seed = draw_seed(x.device)
        ctx.save_for_backward(seed, mask)
        ctx.p, ctx.dtype = p, x.dtype
        return tuple(dropout(x, seed, p, copies, dtype, mask))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        seed, mask = ctx.saved_tensors
        return dropout_backward(grads, seed, ctx.p, ctx.dtype, mask), None, None, None, None
