"""`gradient`: from the dense dW = dY^T X to t, dU and dV', the thin gradients that `build` goes on with, in one launch.

    t[j] = sum_i dW[i, j] W[i, j],    dU = dW V',    dV' = dW^T U

Half of the programs own columns (t, dV'), the others rows (dU): each sum stays in one program, in a fixed order. dW
comes from memory once; the other half finds it in the second-level cache, where the GEMM before has just left it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mora_kernels.launches import launch
from mora_kernels.triton.build.forward import load_tile, store_rows
from mora_kernels.triton.build.shares import load_part
from mora_kernels.triton.configs import padded_rank, settings


@triton.jit
def gradient_kernel(
    dense, dense_stride, weight, weight_stride, thin, out, M, N, rank,
    R: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Fill `out` = [t | dU | dV']; grid (blocks, 2): columns, then rows."""
    own = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    left, right = N, N + M * rank
    result = tl.zeros((BLOCK, R), tl.float32)
    if tl.program_id(1) == 0:
        total = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, M, STEP):
            rows = first + tl.arange(0, STEP)
            tile = load_tile(dense, rows, own, M, N, dense_stride)
            total += tl.sum(tile * load_tile(weight, rows, own, M, N, weight_stride), axis=0)
            part = load_part(thin + left, rows, M, rank, rank, R)
            result = tl.dot(tl.trans(tile), part, result, input_precision=P)
        tl.store(out + own, total, mask=own < N)
        store_rows(out + right, own, N, rank, rank, result, R)
    else:
        for first in range(0, N, STEP):
            cols = first + tl.arange(0, STEP)
            tile = load_tile(dense, own, cols, M, N, dense_stride)
            part = load_part(thin + right, cols, N, rank, rank, R)
            result = tl.dot(tile, part, result, input_precision=P)
        store_rows(out + left, own, M, rank, rank, result, R)


def thin_gradient(dense: Tensor, weight: Tensor, thin: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the gradient of `thin` [u | U | V'] (flat, float32) from the dense gradient of W_eff [out, in]."""
    rows, columns = weight.shape
    rank = (thin.numel() - columns) // (rows + columns)
    dense = dense if dense.stride(1) == 1 else dense.contiguous()
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    out = torch.empty_like(thin) if out is None else out
    options = settings("gradient", weight.device, (rank + 1) // 2)
    grid = (triton.cdiv(max(rows, columns), options["BLOCK"]), 2)
    launch(
        gradient_kernel, grid,
        dense, dense.stride(0), weight, weight.stride(0), thin, out, rows, columns, rank, R=padded_rank(rank),
        **options,
    )  # fmt: skip
    return out
