"""`build`, backward, for one projection: what it gives to its factors at a block of rows, equation (4).

`left` is the side of U, the rows of W [M, N]; `right` that of V, its columns.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mora_kernels.triton.build.forward import FLOOR, load_rows, load_square, load_tile, store_rows


@triton.jit
def load_part(base, rows, N, rank, stride, R: tl.constexpr):
    """Return the first `rank` columns of rows of a [N, stride] float32 matrix, padded with zeros to [len(rows), R]."""
    r = tl.arange(0, R)
    mask = (rows < N)[:, None] & (r < rank)[None, :]
    return tl.load(base + rows[:, None] * stride + r[None, :], mask=mask, other=0.0)


@triton.jit
def branch(rows, N, rank, factor, grad_right, grad_u, norm, magnitude, alpha):
    """Return (p, n, dp, w) of one branch at `rows`: scale, norm, the gradient of the scale, and through the norm."""
    inside = rows < N
    n = tl.load(norm + rows, mask=inside, other=1.0)
    p = tl.div_rn(tl.load(magnitude + rows, mask=rows < tl.where(rank > 0, N, 0), other=0.0).to(tl.float32), n)
    dp = grad_u + alpha * tl.sum(factor * grad_right, axis=1)
    w = tl.where(n > FLOOR, tl.div_rn(tl.div_rn(-dp * p, n), n), 0.0)
    return p, n, dp, w


@triton.jit
def gram_gradient(
    common, common_out, common_magnitude, saved, grad, M, N, rank_c, rank_s, alpha,
    RC: tl.constexpr, BN: tl.constexpr, P: tl.constexpr, SQUARE: tl.constexpr,
):  # fmt: skip
    """Return dG = S_out^T dU_c [RC, RC] of one projection."""
    rank = rank_c + rank_s
    result, longest = tl.zeros((RC, RC), tl.float32), N
    if not SQUARE:
        longest = tl.maximum(M, N)
    for first in range(0, longest, BN):
        rows = first + tl.arange(0, BN)
        factor = load_rows(common, rows, N, rank_c, RC)
        outer = factor
        if not SQUARE:
            outer = load_rows(common_out, rows, M, rank_c, RC)
        grad_right = load_part(grad + N + M * rank, rows, N, rank_c, rank, RC)
        grad_u = tl.load(grad + rows, mask=rows < N, other=0.0)
        _, _, _, w = branch(rows, N, rank_c, factor, grad_right, grad_u, saved, common_magnitude, alpha)
        grad_left = load_part(grad + N, rows, M, rank_c, rank, RC)
        result = tl.dot(tl.trans(outer), grad_left, result, input_precision=P)
        pulled = load_part(saved + 2 * N, rows, N, rank_c, rank_c, RC)
        result = tl.dot(tl.trans(pulled), (alpha * w)[:, None] * factor, result, input_precision=P)
    return result


@triton.jit
def through_norm(
    weight, weight_stride, thin, factor, magnitude, norm, grad_u, grad_right, rows, M, N, rank_b, rank, shift, alpha,
    R: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, TIMES_GRAM: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Return M (w V) [BM, R] at `rows` of one branch; with TIMES_GRAM, M (w V G) = M (w U)."""
    left = thin + N + shift
    own, result = load_part(left, rows, M, rank_b, rank, R), tl.zeros((BM, R), tl.float32)
    for first in range(0, N, BN):
        cols = first + tl.arange(0, BN)
        part = load_rows(factor, cols, N, rank_b, R)
        right = load_part(grad_right, cols, N, rank_b, rank, R)
        t = tl.load(grad_u + cols, mask=cols < N, other=0.0)
        _, _, _, w = branch(cols, N, rank_b, part, right, t, norm, magnitude, alpha)
        tile = load_tile(weight, rows, cols, M, N, weight_stride)
        tile += alpha * tl.dot(own, tl.trans(part), input_precision=P)
        if TIMES_GRAM:
            part = load_part(left, cols, N, rank_b, rank, R)
        result = tl.dot(tile, w[:, None] * part, result, input_precision=P)
    return result


@triton.jit
def specific_left(
    weight, weight_stride, specific_a, magnitude, thin, saved, grad, grad_b,
    M, N, rank_c, rank_s, alpha, rows, R: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Store dB of one projection at `rows` of W."""
    rank = rank_c + rank_s
    right, norm = grad + N + M * rank + rank_c, saved + N
    moved = through_norm(
        weight, weight_stride, thin, specific_a, magnitude, norm, grad, right, rows, M, N, rank_s, rank, rank_c, alpha,
        R, BM, BN, False, P,
    )  # fmt: skip
    grad_left = load_part(grad + N + rank_c, rows, M, rank_s, rank, R) + alpha * moved
    r = tl.arange(0, R)
    mask = (rows < M)[:, None] & (r < rank_s)[None, :]
    tl.store(grad_b + r[None, :] * M + rows[:, None], grad_left.to(grad_b.dtype.element_ty), mask=mask)


@triton.jit
def specific_right(
    specific_a, magnitude, saved, grad, grad_a, grad_magnitude, M, N, rank_c, rank_s, alpha, rows, R: tl.constexpr
):
    """Store dA and dm_s of one projection at the columns `rows` of W."""
    rank = rank_c + rank_s
    right, norm = grad + N + M * rank + rank_c, saved + N
    factor, grad_right = load_rows(specific_a, rows, N, rank_s, R), load_part(right, rows, N, rank_s, rank, R)
    t = tl.load(grad + rows, mask=rows < N, other=0.0)
    p, n, dp, w = branch(rows, N, rank_s, factor, grad_right, t, norm, magnitude, alpha)
    pulled = load_part(saved + 2 * N + N * rank_c, rows, N, rank_s, rank_s, R)
    store_rows(grad_a, rows, N, rank_s, rank_s, alpha * (p[:, None] * grad_right + w[:, None] * pulled), R)
    tl.store(grad_magnitude + rows, tl.div_rn(dp, n).to(grad_magnitude.dtype.element_ty), mask=rows < N)


@triton.jit
def specific_rows(
    weight, weight_stride, specific_a, magnitude, thin, saved, grad, grad_a, grad_b, grad_magnitude,
    M, N, rank_c, rank_s, alpha, block, R: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Store dA, dB and dm_s of one projection at indices `block * BM ...` of its rows and columns."""
    rows = block * BM + tl.arange(0, BM)
    if block * BM < M:
        specific_left(
            weight, weight_stride, specific_a, magnitude, thin, saved, grad, grad_b,
            M, N, rank_c, rank_s, alpha, rows, R, BM, BN, P,
        )  # fmt: skip
    if block * BM < N:
        specific_right(specific_a, magnitude, saved, grad, grad_a, grad_magnitude, M, N, rank_c, rank_s, alpha, rows, R)


@triton.jit
def common_rows(
    weight, weight_stride, common, magnitude, thin, saved, grad, grad_magnitude,
    N, rank_c, rank_s, alpha, block, R: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Store dm_c of a square projection at rows `block * BM ...` and return its own share of dS there [BM, R]."""
    rank = rank_c + rank_s
    right, pulled = grad + N + N * rank, saved + 2 * N
    rows = block * BM + tl.arange(0, BM)
    moved = through_norm(
        weight, weight_stride, thin, common, magnitude, saved, grad, right, rows, N, N, rank_c, rank, 0, alpha,
        R, BM, BN, True, P,
    )  # fmt: skip
    factor = load_rows(common, rows, N, rank_c, R)
    t, grad_right = tl.load(grad + rows, mask=rows < N, other=0.0), load_part(right, rows, N, rank_c, rank, R)
    p, n, dp, w = branch(rows, N, rank_c, factor, grad_right, t, saved, magnitude, alpha)
    tl.store(grad_magnitude + rows, tl.div_rn(dp, n).to(grad_magnitude.dtype.element_ty), mask=rows < N)
    # dV_c + dU_c G, with M^T U = Z G stored and dU_c G = dU G + alpha M (w U)
    turned = load_part(pulled + N * rank, rows, N, rank_c, rank_c, R)
    result = alpha * (p[:, None] * grad_right + moved + w[:, None] * turned)
    gram = load_square(pulled + N * (rank + rank_c), rank_c, R)
    grad_left = load_part(grad + N, rows, N, rank_c, rank, R)
    return tl.dot(grad_left, gram, result, input_precision=P)


@triton.jit
def common_right(common, magnitude, saved, grad, grad_magnitude, M, N, rank_c, rank_s, alpha, rows, R: tl.constexpr):
    """Store dm_c of one projection at the columns `rows` of W and return its dV_c there [len(rows), R]."""
    rank = rank_c + rank_s
    factor = load_rows(common, rows, N, rank_c, R)
    t, right = tl.load(grad + rows, mask=rows < N, other=0.0), load_part(grad + N + M * rank, rows, N, rank_c, rank, R)
    p, n, dp, w = branch(rows, N, rank_c, factor, right, t, saved, magnitude, alpha)
    tl.store(grad_magnitude + rows, tl.div_rn(dp, n).to(grad_magnitude.dtype.element_ty), mask=rows < N)
    turned = load_part(saved + 2 * N + N * rank, rows, N, rank_c, rank_c, R)
    return alpha * (p[:, None] * right + w[:, None] * turned)


@triton.jit
def common_left(
    weight, weight_stride, common, magnitude, thin, saved, grad, M, N, rank_c, rank_s, alpha, rows,
    R: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Return dU_c G of one projection at `rows` of W [BM, R]."""
    rank = rank_c + rank_s
    moved = through_norm(
        weight, weight_stride, thin, common, magnitude, saved, grad, grad + N + M * rank, rows, M, N, rank_c, rank, 0,
        alpha, R, BM, BN, False, P,
    )  # fmt: skip
    grad_left = load_part(grad + N, rows, M, rank_c, rank, R) + alpha * moved
    gram = load_square(saved + 2 * N + N * (rank + rank_c), rank_c, R)
    return tl.dot(grad_left, gram, input_precision=P)
