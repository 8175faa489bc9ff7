"""The thin algebra of equation (3) and of its way back, equation (4), for both terms of W_eff at once.

Thin factors are held as rows, the transposes of what docs/design.md writes: U^T [R, out] and V^T [R, in] with
R = r_c + r_s, the common term's rows above the specific term's. Terms of one rank go through one operation each, as
[terms, r, ...]; terms of two ranks one after the other. Every product of a thin factor with a wide matrix then has the
wide one's layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mora_kernels.factors import Factors
from mora_kernels.numerics import NORM_FLOOR

Thin = tuple[Tensor, Tensor, Tensor]


class Terms(NamedTuple):
    """What the way back through a projection's terms needs, in the accumulation dtype.

    Attributes:
        left: U^T = [G S_out^T; B] [R, out];  right: [S^T; A^T] [R, in].
        norms, scale: of each term [terms, in]: clamped column norms, and magnitude over norm.
    """

    left: Tensor
    right: Tensor
    norms: Tensor
    scale: Tensor


def blocks(one: Factors) -> list[tuple[slice, slice, tuple[int, int, int]]]:
    """Return, for terms of one rank: their rows among all R, their numbers, and the shape (terms, r, -1)."""
    common, specific = one.ranks
    if not specific or common == specific:
        terms = 1 if not specific else 2
        return [(slice(0, terms * common), slice(0, terms), (terms, common, -1))]
    own = slice(common, common + specific)
    return [(slice(0, common), slice(0, 1), (1, common, -1)), (own, slice(1, 2), (1, specific, -1))]


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `tensor` in `dtype`: itself where it is so."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def magnitudes(one: Factors, dtype: torch.dtype) -> Tensor:
    """Return m_c and m_s [terms, in]."""
    common = cast(one.common_magnitude, dtype)
    if one.specific_magnitude is None:
        return common[None]
    return torch.stack([common, cast(one.specific_magnitude, dtype)])


def thin_factors(one: Factors, gram: Tensor) -> tuple[Thin, Terms]:
    """Return u [in], U^T [R, out] and V^T [R, in] of one projection, and what their way back needs.

    The squares of a column are summed directly: the expanded form |w|^2 + 2 alpha <w, c> + alpha^2 |c|^2 cancels.
    """
    dtype = gram.dtype
    weight, left, right = cast(one.weight, dtype), gram @ cast(one.out_side, dtype).T, cast(one.common, dtype).T
    sides = [(left, right)]
    if one.specific_a is not None and one.specific_b is not None:
        sides.append((cast(one.specific_b, dtype), cast(one.specific_a, dtype).T))
        left, right = (torch.cat(rows) for rows in zip(*sides, strict=True))
    norms = torch.stack([squares(weight, *side, one.alpha) for side in sides]).sqrt_().clamp_(min=NORM_FLOOR)
    scale = magnitudes(one, dtype) / norms
    moved = [(scale[of, None] * right[rows].view(shape)).flatten(0, 1) for rows, of, shape in blocks(one)]
    return (scale.sum(dim=0), left, joined(moved).mul_(one.alpha)), Terms(left, right, norms, scale)


def squares(weight: Tensor, left: Tensor, right: Tensor, alpha: float) -> Tensor:
    """Return the squared column norms [in] of W + alpha left^T right."""
    moved = torch.addmm(weight, left.T, right, alpha=alpha)
    return moved.mul_(moved).sum(dim=0)


def joined(parts: list[Tensor]) -> Tensor:
    """Return the rows of all blocks."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def gradients(one: Factors, gram: Tensor, terms: Terms, grads: Thin) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Return the gradient of G and those of `one.own` from those of (u, U^T, V^T), in the dtype of `gram`."""
    dtype, rank = gram.dtype, one.common.shape[1]
    weight, (grad_u, *grad_rows) = cast(one.weight, dtype), grads
    found = []
    for rows, of, shape in blocks(one):
        wide = [part[rows].view(shape) for part in (terms.left, terms.right, *grad_rows)]
        found.append(block_gradients(weight, wide, terms.norms[of], terms.scale[of], grad_u, one.alpha))
    left, right, grad_magnitudes = (joined([*each]) for each in zip(*found, strict=True))
    common, own = left[:rank], right[:rank]
    grad_gram, moved = (common @ cast(one.out_side, dtype)).T, gram @ common
    grad_common, grad_out = (own.add_(moved).T, None) if one.common_out is None else (own.T, moved.T)
    if one.specific_a is None:
        return grad_gram, (grad_common, None, None, grad_magnitudes[0], None, grad_out)
    return grad_gram, (grad_common, right[rank:].T, left[rank:], grad_magnitudes[0], grad_magnitudes[1], grad_out)


def block_gradients(
    weight: Tensor, wide: Sequence[Tensor], norms: Tensor, scale: Tensor, grad_u: Tensor, alpha: float
) -> Thin:
    """Return the gradients of U^T [rows, out], of [S^T; A^T] [rows, in] and of the magnitudes [terms, in] of a block.

    `wide` are its rows of U^T and of [S^T; A^T], and the gradients of its rows of U and of V, alpha p right with p the
    scale: [terms, r, out or in] each.
    """
    left, right, grad_left, grad_moved = wide
    shape = left.shape[:2]
    grad_scale = torch.add(grad_u, (right * grad_moved).sum(dim=1), alpha=alpha)
    slope = torch.where(norms > NORM_FLOOR, scale / norms.square(), 0.0).mul_(grad_scale)[:, None]
    weighted = slope * right
    through = (weighted.flatten(0, 1) @ weight.T).view(*shape, -1)
    through = torch.baddbmm(through, torch.bmm(weighted, right.mT), left, alpha=alpha)
    pulled = (left.flatten(0, 1) @ weight).view(*shape, -1)
    pulled = torch.baddbmm(pulled, torch.bmm(left, left.mT), right, alpha=alpha)
    grad_right = (scale[:, None] * grad_moved).addcmul_(slope, pulled, value=-1.0).mul_(alpha)
    return torch.sub(grad_left, through, alpha=alpha).flatten(0, 1), grad_right.flatten(0, 1), grad_scale / norms
