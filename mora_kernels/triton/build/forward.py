"""`build`, forward: column norms, u, U, V and W_eff of every projection, equation (3), in one launch.

W is [M, N]. A program owns a block of columns of one projection. It reads W twice: once to sum the squared columns of
both branches directly (the expanded form |w|^2 + 2 alpha <w, c> + alpha^2 |c|^2 cancels), once to compose W_eff. The
rows of U with the same indices are the program's as well, so nothing has to be exchanged; SQUARE says that M = N and
that one factor stands on both sides of G.

For the backward pass it leaves the norms, G and, with M = W + alpha Delta the moved weight of a branch, the products
Z_c = M_c^T S_out, Z_s = M_s^T B^T and Z_c G [in, r]: with them at hand every sum over rows that equation (4) asks for
is a sum over thin tensors, and the backward pass needs no exchange either.
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
    EFFECTIVE,
    EFFECTIVE_STRIDE,
    GRAM_SCALE,
    HEIGHT,
    OTHER_COUNT,
    OTHER_FIELDS,
    OTHER_START,
    PROJECTION_FIELDS,
    SAVED,
    SIZE,
    SPECIFIC_A,
    SPECIFIC_B,
    SPECIFIC_MAGNITUDE,
    SPECIFIC_RANK,
    THIN,
    WEIGHT,
    WEIGHT_STRIDE,
)

FLOOR = tl.constexpr(1e-5)


@triton.jit
def pointer(row, field: tl.constexpr, dtype: tl.constexpr, ALIGN: tl.constexpr):
    """Return the address in a table row as a pointer; ALIGN = 16 promises 16 bytes, which a load cannot see itself."""
    address = tl.load(row + field)
    if ALIGN > 1:
        address = tl.multiple_of(address, ALIGN)
    return address.to(tl.pointer_type(dtype))


@triton.jit
def load_rows(base, rows, N, rank, R: tl.constexpr):
    """Return [len(rows), R] of a row-major [N, rank] factor, padded with zeros, in float32."""
    r = tl.arange(0, R)
    mask = (rows < N)[:, None] & (r < rank)[None, :]
    return tl.load(base + rows[:, None] * rank + r[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_columns(base, rows, N, rank, R: tl.constexpr):
    """Return [len(rows), R], the transposed columns of a row-major [rank, N] factor, padded with zeros, in float32."""
    r = tl.arange(0, R)
    mask = (rows < N)[:, None] & (r < rank)[None, :]
    return tl.load(base + r[None, :] * N + rows[:, None], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_rows(base, rows, N, rank, stride, value, R: tl.constexpr):
    """Store [len(rows), R] into the first `rank` columns of a [N, stride] matrix."""
    r = tl.arange(0, R)
    mask = (rows < N)[:, None] & (r < rank)[None, :]
    tl.store(base + rows[:, None] * stride + r[None, :], value.to(base.dtype.element_ty), mask=mask)


@triton.jit
def load_square(base, rank, R: tl.constexpr):
    """Return an r x r matrix padded with zeros to [R, R]."""
    r = tl.arange(0, R)
    mask = (r < rank)[:, None] & (r < rank)[None, :]
    return tl.load(base + r[:, None] * rank + r[None, :], mask=mask, other=0.0)


@triton.jit
def load_tile(base, rows, cols, M, N, stride):
    """Return the tile of W at `rows` x `cols`, zero outside, in float32; row offsets are 64-bit."""
    mask = (rows < M)[:, None] & (cols < N)[None, :]
    return tl.load(base + rows.to(tl.int64)[:, None] * stride + cols[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def total_gram(others, start, count, rank, R: tl.constexpr, BLOCK: tl.constexpr, dtype: tl.constexpr, P: tl.constexpr):
    """Return G = sum of T^T T over the other modalities' factors, [R, R]; the identity when there are none."""
    r = tl.arange(0, R)
    gram = tl.where((r[:, None] == r[None, :]) & (r < rank)[:, None] & (count == 0), 1.0, 0.0)
    for index in range(start, start + count):
        row = others + index * OTHER_FIELDS
        base = pointer(row, 0, dtype, 1)
        size = tl.load(row + 1).to(tl.int32)
        for first in range(0, size, BLOCK):
            part = load_rows(base, first + tl.arange(0, BLOCK), size, rank, R)
            gram = tl.dot(tl.trans(part), part, gram, input_precision=P)
    return gram


@triton.jit
def load_left(base, rows, N, rank, R: tl.constexpr, SPECIFIC: tl.constexpr):
    """Return rows of S, stored [N, rank], or of B^T, stored transposed."""
    if SPECIFIC:
        return load_columns(base, rows, N, rank, R)
    return load_rows(base, rows, N, rank, R)


@triton.jit
def branch_sums(
    weight, weight_stride, left, turned, cols, M, N, rank, alpha,
    R: tl.constexpr, BM: tl.constexpr, SPECIFIC: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Return, for the moved weight M = W + alpha left turned, its clamped column norms [BN] and M^T left [BN, R]."""
    squares, pulled = tl.zeros_like(cols).to(tl.float32), tl.trans(turned) * 0.0
    for first in range(0, M, BM):
        rows = first + tl.arange(0, BM)
        base = load_tile(weight, rows, cols, M, N, weight_stride)
        part = load_left(left, rows, M, rank, R, SPECIFIC)
        moved = base + alpha * tl.dot(part, turned, input_precision=P)
        squares += tl.sum(moved * moved, axis=0)
        pulled = tl.dot(tl.trans(moved), part, pulled, input_precision=P)
    return tl.maximum(tl.sqrt_rn(squares), FLOOR), pulled


@triton.jit
def build_columns(
    weight, weight_stride, common, common_out, gram, specific_a, specific_b, common_magnitude, specific_magnitude,
    thin, saved, effective, effective_stride, M, N, rank_c, rank_s, alpha, block,
    RC: tl.constexpr, RS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, P: tl.constexpr, SQUARE: tl.constexpr,
):  # fmt: skip
    """Do the work of one projection at columns `block * BN ...`."""
    cols = block * BN + tl.arange(0, BN)
    inside = cols < N
    rank = rank_c + rank_s
    left, right, pulled = thin + N, thin + N + M * rank, saved + 2 * N

    own = load_rows(common, cols, N, rank_c, RC)
    moved = tl.dot(own, gram, input_precision=P)
    turned_c = tl.trans(moved)
    if block == 0:
        store_rows(pulled + N * (rank + rank_c), tl.arange(0, RC), rank_c, rank_c, rank_c, gram, RC)
    norm, back = branch_sums(weight, weight_stride, common_out, turned_c, cols, M, N, rank_c, alpha, RC, BM, False, P)
    scale_c = tl.div_rn(tl.load(common_magnitude + cols, mask=inside, other=0.0).to(tl.float32), norm)
    tl.store(saved + cols, norm, mask=inside)
    store_rows(pulled, cols, N, rank_c, rank_c, back, RC)
    back = tl.dot(back, gram, input_precision=P)
    store_rows(pulled + N * rank, cols, N, rank_c, rank_c, back, RC)
    if SQUARE:
        store_rows(left, cols, N, rank_c, rank, moved, RC)
    store_rows(right, cols, N, rank_c, rank, (alpha * scale_c)[:, None] * own, RC)

    own = load_rows(specific_a, cols, N, rank_s, RS)
    turned_s = tl.trans(own)
    norm, back = branch_sums(weight, weight_stride, specific_b, turned_s, cols, M, N, rank_s, alpha, RS, BM, True, P)
    magnitude = tl.load(specific_magnitude + cols, mask=cols < tl.where(rank_s > 0, N, 0), other=0.0).to(tl.float32)
    scale_s = tl.div_rn(magnitude, norm)
    tl.store(saved + N + cols, norm, mask=inside)
    store_rows(pulled + N * rank_c, cols, N, rank_s, rank_s, back, RS)
    if SQUARE:
        store_rows(left + rank_c, cols, N, rank_s, rank, load_columns(specific_b, cols, N, rank_s, RS), RS)
    store_rows(right + rank_c, cols, N, rank_s, rank, (alpha * scale_s)[:, None] * own, RS)

    u = scale_c + scale_s
    tl.store(thin + cols, u, mask=inside)
    turned_c, turned_s = turned_c * (alpha * scale_c)[None, :], turned_s * (alpha * scale_s)[None, :]
    for first in range(0, M, BM):
        rows = first + tl.arange(0, BM)
        result = load_tile(weight, rows, cols, M, N, weight_stride) * u[None, :]
        result = tl.dot(load_rows(common_out, rows, M, rank_c, RC), turned_c, result, input_precision=P)
        result = tl.dot(load_columns(specific_b, rows, M, rank_s, RS), turned_s, result, input_precision=P)
        target = effective + rows.to(tl.int64)[:, None] * effective_stride + cols[None, :]
        tl.store(target, result.to(effective.dtype.element_ty), mask=(rows < M)[:, None] & inside[None, :])


@triton.jit
def build_rows(
    common_out, gram, specific_b, thin, M, N, rank_c, rank_s, block,
    RC: tl.constexpr, RS: tl.constexpr, BN: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Store U = [S_out G | B^T] of one projection that is not square at rows `block * BN ...`."""
    rows, rank, left = block * BN + tl.arange(0, BN), rank_c + rank_s, thin + N
    moved = tl.dot(load_rows(common_out, rows, M, rank_c, RC), gram, input_precision=P)
    store_rows(left, rows, M, rank_c, rank, moved, RC)
    store_rows(left + rank_c, rows, M, rank_s, rank, load_columns(specific_b, rows, M, rank_s, RS), RS)


@triton.jit
def build_group_kernel(
    projections, others, thin, saved,
    WEIGHT_DTYPE: tl.constexpr, FACTOR_DTYPE: tl.constexpr, EFFECTIVE_DTYPE: tl.constexpr,
    RC: tl.constexpr, RS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, P: tl.constexpr, ALIGN: tl.constexpr,
    SQUARE: tl.constexpr,
):  # fmt: skip
    """Build every projection of a table; grid (blocks of the longest side, projections)."""
    row = projections + tl.program_id(1) * PROJECTION_FIELDS
    N = tl.load(row + SIZE).to(tl.int32)
    weight_stride, effective_stride = tl.load(row + WEIGHT_STRIDE), tl.load(row + EFFECTIVE_STRIDE)
    if ALIGN > 1:
        N, weight_stride = tl.multiple_of(N, ALIGN), tl.multiple_of(weight_stride, ALIGN)
        effective_stride = tl.multiple_of(effective_stride, ALIGN)
    M, longest, common_out = N, N, pointer(row, COMMON, FACTOR_DTYPE, 1)
    if not SQUARE:
        M, common_out = tl.load(row + HEIGHT).to(tl.int32), pointer(row, COMMON_OUT, FACTOR_DTYPE, 1)
        if ALIGN > 1:
            M = tl.multiple_of(M, ALIGN)
        longest = tl.maximum(M, N)
    block = tl.program_id(0)
    if block * BN < longest:
        rank_c, rank_s = tl.load(row + COMMON_RANK).to(tl.int32), tl.load(row + SPECIFIC_RANK).to(tl.int32)
        start, count = tl.load(row + OTHER_START).to(tl.int32), tl.load(row + OTHER_COUNT).to(tl.int32)
        scale = tl.load(row + GRAM_SCALE).to(tl.int32).to(tl.float32, bitcast=True)
        gram = scale * total_gram(others, start, count, rank_c, RC, BM, FACTOR_DTYPE, P)
        specific_b = pointer(row, SPECIFIC_B, FACTOR_DTYPE, ALIGN)
        if not SQUARE:
            build_rows(
                common_out, gram, specific_b, thin + tl.load(row + THIN), M, N, rank_c, rank_s, block, RC, RS, BN, P
            )
        if block * BN < N:
            build_columns(
                pointer(row, WEIGHT, WEIGHT_DTYPE, ALIGN), weight_stride, pointer(row, COMMON, FACTOR_DTYPE, 1),
                common_out, gram, pointer(row, SPECIFIC_A, FACTOR_DTYPE, 1), specific_b,
                pointer(row, COMMON_MAGNITUDE, FACTOR_DTYPE, ALIGN),
                pointer(row, SPECIFIC_MAGNITUDE, FACTOR_DTYPE, ALIGN),
                thin + tl.load(row + THIN), saved + tl.load(row + SAVED),
                pointer(row, EFFECTIVE, EFFECTIVE_DTYPE, ALIGN), effective_stride, M, N, rank_c, rank_s,
                tl.load(row + ALPHA).to(tl.int32).to(tl.float32, bitcast=True), block, RC, RS, BM, BN, P, SQUARE,
            )  # fmt: skip


@triton.jit
def build_one_kernel(
    weight, weight_stride, common, common_out, gram, specific_a, specific_b, common_magnitude, specific_magnitude,
    thin, saved, effective, M, N, rank_c, rank_s, alpha,
    RC: tl.constexpr, RS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, P: tl.constexpr, SQUARE: tl.constexpr,
):  # fmt: skip
    """Build one projection from its own pointers and a ready G: no table, so it can be captured and compiled."""
    block, ready = tl.program_id(0), load_square(gram, rank_c, RC)
    if SQUARE:
        build_columns(
            weight, weight_stride, common, common, ready, specific_a, specific_b,
            common_magnitude, specific_magnitude, thin, saved, effective, N, N, N, rank_c, rank_s, alpha, block,
            RC, RS, BM, BN, P, True,
        )  # fmt: skip
    else:
        build_rows(common_out, ready, specific_b, thin, M, N, rank_c, rank_s, block, RC, RS, BN, P)
        if block * BN < N:
            build_columns(
                weight, weight_stride, common, common_out, ready, specific_a, specific_b,
                common_magnitude, specific_magnitude, thin, saved, effective, N, M, N, rank_c, rank_s, alpha, block,
                RC, RS, BM, BN, P, False,
            )  # fmt: skip
