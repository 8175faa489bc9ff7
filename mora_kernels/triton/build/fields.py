"""What stands where in the device tables of `build`: one int64 row per projection, other factor, common factor."""

from __future__ import annotations

import triton.language as tl

# A projection: pointers, sizes in elements, offsets in elements into the flat buffers of the launch.
WEIGHT = tl.constexpr(0)
WEIGHT_STRIDE = tl.constexpr(1)
SIZE = tl.constexpr(2)  # columns of W, in
COMMON_RANK = tl.constexpr(3)
SPECIFIC_RANK = tl.constexpr(4)
COMMON = tl.constexpr(5)
SPECIFIC_A = tl.constexpr(6)
SPECIFIC_B = tl.constexpr(7)
COMMON_MAGNITUDE = tl.constexpr(8)
SPECIFIC_MAGNITUDE = tl.constexpr(9)
OTHER_START = tl.constexpr(10)
OTHER_COUNT = tl.constexpr(11)
EFFECTIVE = tl.constexpr(12)
EFFECTIVE_STRIDE = tl.constexpr(13)
THIN = tl.constexpr(14)
SAVED = tl.constexpr(15)
GRAD_A = tl.constexpr(16)
GRAD_B = tl.constexpr(17)
GRAD_COMMON_MAGNITUDE = tl.constexpr(18)
GRAD_SPECIFIC_MAGNITUDE = tl.constexpr(19)
ALPHA = tl.constexpr(20)  # the bits of a float32
HEIGHT = tl.constexpr(21)  # rows of W, out
COMMON_OUT = tl.constexpr(22)  # the factor left of G; that of COMMON in a square projection
GRAM_SCALE = tl.constexpr(23)  # the bits of a float32: of the sum that G is; 1 where G = I
PROJECTION_FIELDS = tl.constexpr(24)  # even: rows stay 16-byte aligned

# One of the other modalities' factors of a projection: pointer, rows.
OTHER_FIELDS = tl.constexpr(2)

# A common factor: pointer, rows, rank; which projections own it, which see it as another modality's; its gradient.
# In a table with projections that are not square, those that own it as S are apart from those that own it as S_out.
FACTOR_COMMON = tl.constexpr(0)
FACTOR_SIZE = tl.constexpr(1)
FACTOR_RANK = tl.constexpr(2)
OWNED_START = tl.constexpr(3)
OWNED_COUNT = tl.constexpr(4)
SEEN_START = tl.constexpr(5)
SEEN_COUNT = tl.constexpr(6)
GRAD_COMMON = tl.constexpr(7)
OUT_START = tl.constexpr(8)
OUT_COUNT = tl.constexpr(9)
FACTOR_FIELDS = tl.constexpr(10)
