"""`build`, backward: equation (4) for every projection, deterministic, in one launch and without atomics.

With M = W + alpha U V^T the moved weight of a branch, (4) reads

    dU += alpha M (w V),  dV = alpha p dV' + alpha w M^T U,  dS = dV_c + dU_c G,  dG = S^T dU_c,  dT = T (dG + dG^T).

A program owns a block of rows of one COMMON factor S and adds up everything that reaches them: from each projection
that owns S, its dV_c + dU_c G; from each projection that sees S as another modality's, S (dG + dG^T). dG is a sum over
all rows of that projection, but with Z = M_c^T S from the forward pass it needs thin tensors only,

    dG = S^T dU + alpha Z^T (w S),

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
from mora_kernels.triton.build.forward import (
    FLOOR,
    load_rows,
    load_square,
    load_tile,
    pointer,
    store_rows,
)


@triton.jit
def load_part(base, rows, D, rank, stride, R: tl.constexpr):
    """Return the first `rank` columns of rows of a [D, stride] float32 matrix, padded with zeros to [len(rows), R]."""
    r = tl.arange(0, R)
    mask = (rows < D)[:, None] & (r < rank)[None, :]
    return tl.load(base + rows[:, None] * stride + r[None, :], mask=mask, other=0.0)


@triton.jit
def branch(rows, D, rank, factor, grad_right, grad_u, norm, magnitude, alpha):
    """Return (p, n, dp, w) of one branch at `rows`: scale, norm, the gradient of the scale, and through the norm."""
    inside = rows < D
    n = tl.load(norm + rows, mask=inside, other=1.0)
    p = tl.div_rn(tl.load(magnitude + rows, mask=rows < tl.where(rank > 0, D, 0), other=0.0).to(tl.float32), n)
    dp = grad_u + alpha * tl.sum(factor * grad_right, axis=1)
    w = tl.where(n > FLOOR, tl.div_rn(tl.div_rn(-dp * p, n), n), 0.0)
    return p, n, dp, w


@triton.jit
def gram_gradient(
    common, common_magnitude, saved, grad, D, rank_c, rank_s, alpha,
    RC: tl.constexpr, BN: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Return dG = S^T dU_c [RC, RC] of one projection."""
    rank = rank_c + rank_s
    result = tl.zeros((RC, RC), tl.float32)
    for first in range(0, D, BN):
        rows = first + tl.arange(0, BN)
        factor = load_rows(common, rows, D, rank_c, RC)
        grad_right = load_part(grad + D + D * rank, rows, D, rank_c, rank, RC)
        grad_u = tl.load(grad + rows, mask=rows < D, other=0.0)
        _, _, _, w = branch(rows, D, rank_c, factor, grad_right, grad_u, saved, common_magnitude, alpha)
        grad_left = load_part(grad + D, rows, D, rank_c, rank, RC)
        result = tl.dot(tl.trans(factor), grad_left, result, input_precision=P)
        pulled = load_part(saved + 2 * D, rows, D, rank_c, rank_c, RC)
        result = tl.dot(tl.trans(pulled), (alpha * w)[:, None] * factor, result, input_precision=P)
    return result


@triton.jit
def through_norm(
    weight, weight_stride, thin, factor, magnitude, norm, grad_u, grad_right, rows, D, rank_b, rank, shift, alpha,
    R: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, TIMES_GRAM: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Return M (w V) [BM, R] at `rows` of one branch; with TIMES_GRAM, M (w V G) = M (w U)."""
    left = thin + D + shift
    own, result = load_part(left, rows, D, rank_b, rank, R), tl.zeros((BM, R), tl.float32)
    for first in range(0, D, BN):
        cols = first + tl.arange(0, BN)
        part = load_rows(factor, cols, D, rank_b, R)
        right = load_part(grad_right, cols, D, rank_b, rank, R)
        t = tl.load(grad_u + cols, mask=cols < D, other=0.0)
        _, _, _, w = branch(cols, D, rank_b, part, right, t, norm, magnitude, alpha)
        tile = load_tile(weight, rows, cols, D, weight_stride)
        tile += alpha * tl.dot(own, tl.trans(part), input_precision=P)
        if TIMES_GRAM:
            part = load_part(left, cols, D, rank_b, rank, R)
        result = tl.dot(tile, w[:, None] * part, result, input_precision=P)
    return result


@triton.jit
def specific_rows(
    weight, weight_stride, specific_a, magnitude, thin, saved, grad, grad_a, grad_b, grad_magnitude,
    D, rank_c, rank_s, alpha, block, R: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Store dA, dB and dm_s of one projection at rows `block * BM ...`."""
    rank = rank_c + rank_s
    right, norm = grad + D + D * rank + rank_c, saved + D
    rows = block * BM + tl.arange(0, BM)
    moved = through_norm(
        weight, weight_stride, thin, specific_a, magnitude, norm, grad, right, rows, D, rank_s, rank, rank_c, alpha,
        R, BM, BN, False, P,
    )  # fmt: skip
    grad_left = load_part(grad + D + rank_c, rows, D, rank_s, rank, R) + alpha * moved
    r = tl.arange(0, R)
    mask = (rows < D)[:, None] & (r < rank_s)[None, :]
    tl.store(grad_b + r[None, :] * D + rows[:, None], grad_left.to(grad_b.dtype.element_ty), mask=mask)

    factor, grad_right = load_rows(specific_a, rows, D, rank_s, R), load_part(right, rows, D, rank_s, rank, R)
    t = tl.load(grad + rows, mask=rows < D, other=0.0)
    p, n, dp, w = branch(rows, D, rank_s, factor, grad_right, t, norm, magnitude, alpha)
    pulled = load_part(saved + 2 * D + D * rank_c, rows, D, rank_s, rank_s, R)
    store_rows(grad_a, rows, D, rank_s, rank_s, alpha * (p[:, None] * grad_right + w[:, None] * pulled), R)
    tl.store(grad_magnitude + rows, tl.div_rn(dp, n).to(grad_magnitude.dtype.element_ty), mask=rows < D)


@triton.jit
def common_rows(
    weight, weight_stride, common, magnitude, thin, saved, grad, grad_magnitude,
    D, rank_c, rank_s, alpha, block, R: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Store dm_c of one projection at rows `block * BM ...` and return its own share of dS there [BM, R]."""
    rank = rank_c + rank_s
    right, pulled = grad + D + D * rank, saved + 2 * D
    rows = block * BM + tl.arange(0, BM)
    moved = through_norm(
        weight, weight_stride, thin, common, magnitude, saved, grad, right, rows, D, rank_c, rank, 0, alpha,
        R, BM, BN, True, P,
    )  # fmt: skip
    factor = load_rows(common, rows, D, rank_c, R)
    t, grad_right = tl.load(grad + rows, mask=rows < D, other=0.0), load_part(right, rows, D, rank_c, rank, R)
    p, n, dp, w = branch(rows, D, rank_c, factor, grad_right, t, saved, magnitude, alpha)
    tl.store(grad_magnitude + rows, tl.div_rn(dp, n).to(grad_magnitude.dtype.element_ty), mask=rows < D)
    # dV_c + dU_c G, with M^T U = Z G stored and dU_c G = dU G + alpha M (w U)
    turned = load_part(pulled + D * rank, rows, D, rank_c, rank_c, R)
    result = alpha * (p[:, None] * grad_right + moved + w[:, None] * turned)
    gram = load_square(pulled + D * (rank + rank_c), rank_c, R)
    grad_left = load_part(grad + D, rows, D, rank_c, rank, R)
    return tl.dot(grad_left, gram, result, input_precision=P)


@triton.jit
def build_group_backward_kernel(
    projections, factors, links, thin, saved, grad, out, FACTORS,
    WEIGHT_DTYPE: tl.constexpr, FACTOR_DTYPE: tl.constexpr,
    RC: tl.constexpr, RS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, P: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Write every gradient of a table into `out`; grid (row blocks of the tallest, common factors + projections)."""
    block = tl.program_id(0)
    if tl.program_id(1) >= FACTORS:
        row = projections + (tl.program_id(1) - FACTORS) * PROJECTION_FIELDS
        D, rank_s = tl.load(row + SIZE).to(tl.int32), tl.load(row + SPECIFIC_RANK).to(tl.int32)
        stride = tl.load(row + WEIGHT_STRIDE)
        if ALIGN > 1:
            D, stride = tl.multiple_of(D, ALIGN), tl.multiple_of(stride, ALIGN)
        if block * BM < tl.where(rank_s > 0, D, 0):
            specific_rows(
                pointer(row, WEIGHT, WEIGHT_DTYPE, ALIGN), stride, pointer(row, SPECIFIC_A, FACTOR_DTYPE, 1),
                pointer(row, SPECIFIC_MAGNITUDE, FACTOR_DTYPE, ALIGN), thin + tl.load(row + THIN),
                saved + tl.load(row + SAVED), grad + tl.load(row + THIN), out + tl.load(row + GRAD_A),
                out + tl.load(row + GRAD_B), out + tl.load(row + GRAD_SPECIFIC_MAGNITUDE),
                D, tl.load(row + COMMON_RANK).to(tl.int32), rank_s,
                tl.load(row + ALPHA).to(tl.int32).to(tl.float32, bitcast=True), block, RS, BM, BN, P,
            )  # fmt: skip
    else:
        factor = factors + tl.program_id(1) * FACTOR_FIELDS
        D, rank_c = tl.load(factor + FACTOR_SIZE).to(tl.int32), tl.load(factor + FACTOR_RANK).to(tl.int32)
        if ALIGN > 1:
            D = tl.multiple_of(D, ALIGN)
        if block * BM < D:
            grams = tl.zeros((RC, RC), tl.float32)
            start, count = tl.load(factor + SEEN_START).to(tl.int32), tl.load(factor + SEEN_COUNT).to(tl.int32)
            for index in range(start, start + count):
                row = projections + tl.load(links + index) * PROJECTION_FIELDS
                one = gram_gradient(
                    pointer(row, COMMON, FACTOR_DTYPE, 1), pointer(row, COMMON_MAGNITUDE, FACTOR_DTYPE, ALIGN),
                    saved + tl.load(row + SAVED), grad + tl.load(row + THIN),
                    tl.load(row + SIZE).to(tl.int32), rank_c, tl.load(row + SPECIFIC_RANK).to(tl.int32),
                    tl.load(row + ALPHA).to(tl.int32).to(tl.float32, bitcast=True), RC, BN, P,
                )  # fmt: skip
                grams += one + tl.trans(one)
            rows = block * BM + tl.arange(0, BM)
            own = load_rows(pointer(factor, FACTOR_COMMON, FACTOR_DTYPE, 1), rows, D, rank_c, RC)
            result = tl.dot(own, grams, input_precision=P)
            start, count = tl.load(factor + OWNED_START).to(tl.int32), tl.load(factor + OWNED_COUNT).to(tl.int32)
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
                    D, rank_c, tl.load(row + SPECIFIC_RANK).to(tl.int32),
                    tl.load(row + ALPHA).to(tl.int32).to(tl.float32, bitcast=True), block, RC, BM, BN, P,
                )  # fmt: skip
            store_rows(out + tl.load(factor + GRAD_COMMON), rows, D, rank_c, rank_c, result, RC)


@triton.jit
def build_one_backward_kernel(
    weight, weight_stride, common, specific_a, common_magnitude, specific_magnitude, thin, saved, grad,
    grad_common, grad_gram, grad_a, grad_b, grad_common_magnitude, grad_specific_magnitude,
    D, rank_c, rank_s, alpha,
    RC: tl.constexpr, RS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Write every gradient of one projection; grid (row blocks + 1 for dG, 1 or 2 for the specific term)."""
    block = tl.program_id(0)
    if tl.program_id(1) > 0:
        if block * BM < D:
            specific_rows(
                weight, weight_stride, specific_a, specific_magnitude, thin, saved, grad, grad_a, grad_b,
                grad_specific_magnitude, D, rank_c, rank_s, alpha, block, RS, BM, BN, P,
            )  # fmt: skip
    elif block * BM < D:
        result = common_rows(
            weight, weight_stride, common, common_magnitude, thin, saved, grad, grad_common_magnitude,
            D, rank_c, rank_s, alpha, block, RC, BM, BN, P,
        )  # fmt: skip
        store_rows(grad_common, block * BM + tl.arange(0, BM), D, rank_c, rank_c, result, RC)
    else:
        gram = gram_gradient(common, common_magnitude, saved, grad, D, rank_c, rank_s, alpha, RC, BN, P)
        store_rows(grad_gram, tl.arange(0, RC), rank_c, rank_c, rank_c, gram, RC)
