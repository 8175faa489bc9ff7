"""`build`, backward: equation (4) for every projection, deterministic, in one launch and without atomics.

With M = W + alpha U V^T the moved weight of a branch, (4) reads

    dU += alpha M (w V),  dV = alpha p dV' + alpha w M^T U,  dS = dV_c,  dS_out = dU_c G,  dG = S_out^T dU_c,
    dT = T (dG + dG^T),  and dS + dS_out in a square projection, where S_out = S.

A program owns a block of rows of one COMMON factor S and adds up everything that reaches them: from each projection
that owns S, its dV_c or dU_c G or both; from each projection that sees S as another modality's, S (dG + dG^T). dG is a
sum over all rows of that projection, but with Z = M_c^T S_out from the forward pass it needs thin tensors only,

    dG = S_out^T dU + alpha Z^T (w S),

so every program computes the few it needs again (r x r results) instead of waiting for another program. Other programs
own the rows of the specific factors of one projection.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mora_kernels.triton.build.fields import (
    ALPHA,
    COMMON,
    COMMON_MAGNITUDE,
    COMMON_OUT,
    COMMON_RANK,
    FACTOR_COMMON,
    FACTOR_FIELDS,
    FACTOR_RANK,
    FACTOR_SIZE,
    GRAD_A,
    GRAD_B,
    GRAD_COMMON,
    GRAD_COMMON_MAGNITUDE,
    GRAD_SPECIFIC_MAGNITUDE,
    GRAM_SCALE,
    HEIGHT,
    OUT_COUNT,
    OUT_START,
    OWNED_COUNT,
    OWNED_START,
    PROJECTION_FIELDS,
    SAVED,
    SEEN_COUNT,
    SEEN_START,
    SIZE,
    SPECIFIC_A,
    SPECIFIC_MAGNITUDE,
    SPECIFIC_RANK,
    THIN,
    WEIGHT,
    WEIGHT_STRIDE,
)
from mora_kernels.triton.build.forward import load_rows, pointer, store_rows
from mora_kernels.triton.build.shares import common_left, common_right, common_rows, gram_gradient, specific_rows


@triton.jit
def side_rows(
    projections, links, start, count, thin, saved, grad, out, rows, rank_c,
    WEIGHT_DTYPE: tl.constexpr, FACTOR_DTYPE: tl.constexpr, R: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    P: tl.constexpr, ALIGN: tl.constexpr, LEFT: tl.constexpr,
):  # fmt: skip
    """Return what the linked projections give a common factor at `rows`: dU_c G where it is S_out, else dV_c."""
    result = tl.zeros((BM, R), tl.float32)
    for index in range(start, start + count):
        row = projections + tl.load(links + index) * PROJECTION_FIELDS
        M, N, stride = (
            tl.load(row + HEIGHT).to(tl.int32),
            tl.load(row + SIZE).to(tl.int32),
            tl.load(row + WEIGHT_STRIDE),
        )
        if ALIGN > 1:
            M, N, stride = tl.multiple_of(M, ALIGN), tl.multiple_of(N, ALIGN), tl.multiple_of(stride, ALIGN)
        rank_s, alpha = tl.load(row + SPECIFIC_RANK).to(tl.int32), tl.load(row + ALPHA).to(tl.int32)
        common, magnitude = pointer(row, COMMON, FACTOR_DTYPE, 1), pointer(row, COMMON_MAGNITUDE, FACTOR_DTYPE, ALIGN)
        kept, slot = saved + tl.load(row + SAVED), grad + tl.load(row + THIN)
        if LEFT:
            result += common_left(
                pointer(row, WEIGHT, WEIGHT_DTYPE, ALIGN), stride, common, magnitude, thin + tl.load(row + THIN), kept,
                slot, M, N, rank_c, rank_s, alpha.to(tl.float32, bitcast=True), rows, R, BM, BN, P,
            )  # fmt: skip
        else:
            result += common_right(
                common, magnitude, kept, slot, out + tl.load(row + GRAD_COMMON_MAGNITUDE), M, N, rank_c, rank_s,
                alpha.to(tl.float32, bitcast=True), rows, R,
            )  # fmt: skip
    return result


@triton.jit
def build_group_backward_kernel(
    projections, factors, links, thin, saved, grad, out, FACTORS,
    WEIGHT_DTYPE: tl.constexpr, FACTOR_DTYPE: tl.constexpr,
    RC: tl.constexpr, RS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, P: tl.constexpr, ALIGN: tl.constexpr,
    SQUARE: tl.constexpr,
):  # fmt: skip
    """Write every gradient of a table into `out`; grid (blocks of the longest side, common factors + projections)."""
    block = tl.program_id(0)
    if tl.program_id(1) >= FACTORS:
        row = projections + (tl.program_id(1) - FACTORS) * PROJECTION_FIELDS
        N, rank_s = tl.load(row + SIZE).to(tl.int32), tl.load(row + SPECIFIC_RANK).to(tl.int32)
        stride = tl.load(row + WEIGHT_STRIDE)
        if ALIGN > 1:
            N, stride = tl.multiple_of(N, ALIGN), tl.multiple_of(stride, ALIGN)
        M, longest = N, N
        if not SQUARE:
            M = tl.load(row + HEIGHT).to(tl.int32)
            if ALIGN > 1:
                M = tl.multiple_of(M, ALIGN)
            longest = tl.maximum(M, N)
        if block * BM < tl.where(rank_s > 0, longest, 0):
            specific_rows(
                pointer(row, WEIGHT, WEIGHT_DTYPE, ALIGN), stride, pointer(row, SPECIFIC_A, FACTOR_DTYPE, 1),
                pointer(row, SPECIFIC_MAGNITUDE, FACTOR_DTYPE, ALIGN), thin + tl.load(row + THIN),
                saved + tl.load(row + SAVED), grad + tl.load(row + THIN), out + tl.load(row + GRAD_A),
                out + tl.load(row + GRAD_B), out + tl.load(row + GRAD_SPECIFIC_MAGNITUDE),
                M, N, tl.load(row + COMMON_RANK).to(tl.int32), rank_s,
                tl.load(row + ALPHA).to(tl.int32).to(tl.float32, bitcast=True), block, RS, BM, BN, P,
            )  # fmt: skip
    else:
        factor = factors + tl.program_id(1) * FACTOR_FIELDS
        N, rank_c = tl.load(factor + FACTOR_SIZE).to(tl.int32), tl.load(factor + FACTOR_RANK).to(tl.int32)
        if ALIGN > 1:
            N = tl.multiple_of(N, ALIGN)
        if block * BM < N:
            grams = tl.zeros((RC, RC), tl.float32)
            start, count = tl.load(factor + SEEN_START).to(tl.int32), tl.load(factor + SEEN_COUNT).to(tl.int32)
            for index in range(start, start + count):
                row = projections + tl.load(links + index) * PROJECTION_FIELDS
                width = tl.load(row + SIZE).to(tl.int32)
                height, common_out = width, pointer(row, COMMON, FACTOR_DTYPE, 1)
                if not SQUARE:
                    height, common_out = tl.load(row + HEIGHT).to(tl.int32), pointer(row, COMMON_OUT, FACTOR_DTYPE, 1)
                one = gram_gradient(
                    pointer(row, COMMON, FACTOR_DTYPE, 1), common_out,
                    pointer(row, COMMON_MAGNITUDE, FACTOR_DTYPE, ALIGN),
                    saved + tl.load(row + SAVED), grad + tl.load(row + THIN), height, width, rank_c,
                    tl.load(row + SPECIFIC_RANK).to(tl.int32),
                    tl.load(row + ALPHA).to(tl.int32).to(tl.float32, bitcast=True), RC, BN, P, SQUARE,
                )  # fmt: skip
                grams += tl.load(row + GRAM_SCALE).to(tl.int32).to(tl.float32, bitcast=True) * (one + tl.trans(one))
            rows = block * BM + tl.arange(0, BM)
            own = load_rows(pointer(factor, FACTOR_COMMON, FACTOR_DTYPE, 1), rows, N, rank_c, RC)
            result = tl.dot(own, grams, input_precision=P)
            start, count = tl.load(factor + OWNED_START).to(tl.int32), tl.load(factor + OWNED_COUNT).to(tl.int32)
            if SQUARE:
                for index in range(start, start + count):
                    row = projections + tl.load(links + index) * PROJECTION_FIELDS
                    stride = tl.load(row + WEIGHT_STRIDE)
                    if ALIGN > 1:
                        stride = tl.multiple_of(stride, ALIGN)
                    result += common_rows(
                        pointer(row, WEIGHT, WEIGHT_DTYPE, ALIGN), stride, pointer(row, COMMON, FACTOR_DTYPE, 1),
                        pointer(row, COMMON_MAGNITUDE, FACTOR_DTYPE, ALIGN), thin + tl.load(row + THIN),
                        saved + tl.load(row + SAVED), grad + tl.load(row + THIN),
                        out + tl.load(row + GRAD_COMMON_MAGNITUDE),
                        N, rank_c, tl.load(row + SPECIFIC_RANK).to(tl.int32),
                        tl.load(row + ALPHA).to(tl.int32).to(tl.float32, bitcast=True), block, RC, BM, BN, P,
                    )  # fmt: skip
            else:
                result += side_rows(
                    projections, links, start, count, thin, saved, grad, out, rows, rank_c,
                    WEIGHT_DTYPE, FACTOR_DTYPE, RC, BM, BN, P, ALIGN, False,
                )  # fmt: skip
                start, count = tl.load(factor + OUT_START).to(tl.int32), tl.load(factor + OUT_COUNT).to(tl.int32)
                result += side_rows(
                    projections, links, start, count, thin, saved, grad, out, rows, rank_c,
                    WEIGHT_DTYPE, FACTOR_DTYPE, RC, BM, BN, P, ALIGN, True,
                )  # fmt: skip
            store_rows(out + tl.load(factor + GRAD_COMMON), rows, N, rank_c, rank_c, result, RC)


@triton.jit
def build_one_backward_kernel(
    weight, weight_stride, common, common_out, specific_a, common_magnitude, specific_magnitude, thin, saved, grad,
    grad_common, grad_gram, grad_a, grad_b, grad_common_magnitude, grad_specific_magnitude, grad_out,
    M, N, rank_c, rank_s, alpha,
    RC: tl.constexpr, RS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, P: tl.constexpr, SQUARE: tl.constexpr,
):  # fmt: skip
    """Write every gradient of one projection; grid (blocks of the longer side + 1 for dG, 1 or 2 with the specific)."""
    block = tl.program_id(0)
    rows = block * BM + tl.arange(0, BM)
    longest = N
    if SQUARE:
        M = N
    else:
        longest = tl.maximum(M, N)
    if tl.program_id(1) > 0:
        specific_rows(
            weight, weight_stride, specific_a, specific_magnitude, thin, saved, grad, grad_a, grad_b,
            grad_specific_magnitude, M, N, rank_c, rank_s, alpha, block, RS, BM, BN, P,
        )  # fmt: skip
    elif block * BM >= longest:
        gram = gram_gradient(
            common, common_out, common_magnitude, saved, grad, M, N, rank_c, rank_s, alpha, RC, BN, P, SQUARE
        )
        store_rows(grad_gram, tl.arange(0, RC), rank_c, rank_c, rank_c, gram, RC)
    elif SQUARE:
        result = common_rows(
            weight, weight_stride, common, common_magnitude, thin, saved, grad, grad_common_magnitude,
            N, rank_c, rank_s, alpha, block, RC, BM, BN, P,
        )  # fmt: skip
        store_rows(grad_common, rows, N, rank_c, rank_c, result, RC)
    else:
        if block * BM < N:
            right = common_right(
                common, common_magnitude, saved, grad, grad_common_magnitude, M, N, rank_c, rank_s, alpha, rows, RC
            )
            store_rows(grad_common, rows, N, rank_c, rank_c, right, RC)
        if block * BM < M:
            left = common_left(
                weight, weight_stride, common, common_magnitude, thin, saved, grad, M, N, rank_c, rank_s, alpha, rows,
                RC, BM, BN, P,
            )  # fmt: skip
            store_rows(grad_out, rows, M, rank_c, rank_c, left, RC)
