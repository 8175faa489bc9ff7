"""The thin algebra of equation (3) and of its way back, equation (4), for all terms of alike projections at once.

P projections of one kind (shape, ranks, alpha) lie one behind the other in tensors [P, ...], so that an operation on
thin factors is one operation, however many there are; only products with a frozen W, of which no second copy is made,
go one by one. Thin factors are rows, the transposes of what docs/design.md writes: U^T [R, out] and V^T [R, in] with
R = r_c + r_s, the common term's rows above the specific term's. Terms of one rank go together as [P, terms, r, ...],
terms of two ranks one after the other.
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
    """What the way back through P projections of one kind needs, in the accumulation dtype.

    Attributes:
        gram: G [P, r_c, r_c];  outer: S_out [P, out, r_c], None where that is S.
        left: U^T = [G S_out^T; B] [P, R, out];  right: [S^T; A^T] [P, R, in].
        norms, scale: of each term [P, terms, in]: clamped column norms, and magnitude over norm.
    """

    gram: Tensor
    outer: Tensor | None
    left: Tensor
    right: Tensor
    norms: Tensor
    scale: Tensor


class Gradients(NamedTuple):
    """Gradients of G and of the factors of P projections, each [P, *shape of the factor]; None for one that is absent.

    From `common` on they are in the order of `Factors.own`.
    """

    gram: Tensor
    common: Tensor
    specific_a: Tensor | None
    specific_b: Tensor | None
    common_magnitude: Tensor
    specific_magnitude: Tensor | None
    common_out: Tensor | None


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `tensor` in `dtype`: itself where it is so."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def stacked(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return tensors of one shape one behind the other, [P, ...]; a view of a single one."""
    if len(tensors) == 1:
        return cast(tensors[0], dtype)[None]
    return torch.stack([cast(tensor, dtype) for tensor in tensors])


def optional(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> Tensor | None:
    """As `stacked`, of what all projections of a kind have or none has."""
    present = [tensor for tensor in tensors if tensor is not None]
    return stacked(present, dtype) if present else None


def thin_factors(factors: Sequence[Factors], gram: Tensor) -> tuple[Thin, Terms]:
    """Return u [P, in], U^T [P, R, out], V^T [P, R, in] of projections of one kind, and what their way back needs.

    The squares of a column are summed directly: the expanded form |w|^2 + 2 alpha <w, c> + alpha^2 |c|^2 cancels.
    """
    dtype, alpha, ranks = gram.dtype, factors[0].alpha, factors[0].ranks
    common = stacked([one.common for one in factors], dtype)
    outer = optional([one.common_out for one in factors], dtype)
    scale = stacked([one.common_magnitude for one in factors], dtype)[:, None]
    left, right = torch.bmm(gram, (common if outer is None else outer).mT), common.mT
    a, b, magnitude = (
        optional([part[place] for part in map(specific, factors)], dtype) for place in range(3)
    )  # all of them, or none
    if a is not None and b is not None and magnitude is not None:
        left, right = torch.cat([left, b], dim=1), torch.cat([right, a.mT], dim=1)
        scale = torch.cat([scale, magnitude[:, None]], dim=1)
    else:
        right = right.contiguous()
    sides = zip(apart(left, ranks), apart(right, ranks), strict=True)
    sums: list[Tensor] = []
    for one in factors:
        weight = cast(one.weight, dtype)  # one at a time: all of a model's in half precision would fill the memory
        sums += [squares(weight, *next(sides), alpha) for _ in range(scale.shape[1])]
    norms = torch.stack(sums).view_as(scale).sqrt_().clamp_(min=NORM_FLOOR)
    scale = scale / norms
    moved = joined([(scale[:, of, None] * view(right)).flatten(1, 2) for view, of in blocks(ranks)])
    return (scale.sum(dim=1), left, moved.mul_(alpha)), Terms(gram, outer, left, right, norms, scale)


def specific(one: Factors) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return A, B and m_s."""
    return one.specific_a, one.specific_b, one.specific_magnitude


class Block(NamedTuple):
    """The rows of terms of one rank among all R; a call returns them as [P, terms, r, width]."""

    first: int
    terms: int
    rank: int

    def __call__(self, rows: Tensor) -> Tensor:
        length = self.terms * self.rank
        part = rows if rows.shape[1] == length else rows[:, self.first : self.first + length]
        return part.unflatten(1, (self.terms, self.rank))


def blocks(ranks: tuple[int, int]) -> list[tuple[Block, slice]]:
    """Return the blocks of terms of one rank, each with their numbers among all terms."""
    common, specific = ranks
    if specific in (0, common):
        terms = 1 if not specific else 2
        return [(Block(0, terms, common), slice(0, terms))]
    return [(Block(0, 1, common), slice(0, 1)), (Block(common, 1, specific), slice(1, 2))]


def apart(rows: Tensor, ranks: tuple[int, int]) -> Sequence[Tensor]:
    """Return the rows [r, width] of every term of every projection, the terms of a projection side by side."""
    if len(blocks(ranks)) == 1:
        return rows.view(-1, ranks[0], rows.shape[2]).unbind()
    return [part for one in rows.unbind() for part in one.split(list(ranks))]


def squares(weight: Tensor, left: Tensor, right: Tensor, alpha: float) -> Tensor:
    """Return the squared column norms [in] of W + alpha left^T right."""
    moved = torch.addmm(weight, left.T, right, alpha=alpha)
    return moved.mul_(moved).sum(dim=0)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Return the rows, or the terms, of all blocks, [P, all of them, ...]."""
    return parts[0] if len(parts) == 1 else torch.cat([*parts], dim=1)


def gradients(factors: Sequence[Factors], terms: Terms, grads: Thin) -> Gradients:
    """Return the gradients of G and of the factors from those of (u, U^T, V^T), in the accumulation dtype."""
    grad_u, *grad_rows = grads
    ranks, alpha = factors[0].ranks, factors[0].alpha
    common_rank, weights = ranks[0], [one.weight for one in factors]
    found = []
    for view, of in blocks(ranks):
        wide = [view(part) for part in (terms.left, terms.right, *grad_rows)]
        found.append(block_gradients(weights, wide, terms.norms[:, of], terms.scale[:, of], grad_u, alpha))
    left, right, magnitudes = (joined(each) for each in zip(*found, strict=True))
    of_common, own = left[:, :common_rank], right[:, :common_rank]
    outer = terms.right[:, :common_rank].mT if terms.outer is None else terms.outer
    grad_gram, moved = torch.bmm(of_common, outer).mT, torch.bmm(terms.gram, of_common)
    grad_common, grad_out = (own + moved, None) if terms.outer is None else (own, columns(moved))
    grad_a = grad_b = grad_specific = None
    if magnitudes.shape[1] == 2:
        grad_a, grad_b, grad_specific = columns(right[:, common_rank:]), left[:, common_rank:], magnitudes[:, 1]
    return Gradients(grad_gram, columns(grad_common), grad_a, grad_b, magnitudes[:, 0], grad_specific, grad_out)


def columns(rows: Tensor) -> Tensor:
    """Return rows [P, r, width] as [P, width, r], laid out like the factors they are gradients of."""
    return rows.mT.contiguous()


def block_gradients(
    weights: Sequence[Tensor], wide: Sequence[Tensor], norms: Tensor, scale: Tensor, grad_u: Tensor, alpha: float
) -> Thin:
    """Return the gradients of U^T [P, rows, out], [S^T; A^T] [P, rows, in] and magnitudes [P, terms, in] of a block.

    `wide` are its rows of U^T and of [S^T; A^T], and the gradients of its rows of U and of V, alpha p right with p the
    scale: [P, terms, r, out or in] each.
    """
    left, right, grad_left, grad_moved = wide
    grad_scale = torch.add(grad_u[:, None], (right * grad_moved).sum(dim=2), alpha=alpha)
    slope = torch.where(norms > NORM_FLOOR, scale / norms.square(), 0.0).mul_(grad_scale)[:, :, None]
    weighted = slope * right
    products = []
    for first, second, weight in zip(weighted.flatten(1, 2), left.flatten(1, 2), weights, strict=True):
        wide_weight = cast(weight, first.dtype)
        products.append((first @ wide_weight.T, second @ wide_weight))
    through, pulled = (torch.stack(each) for each in zip(*products, strict=True))
    through, pulled = plus(through, weighted, right, left, alpha), plus(pulled, left, left, right, alpha)
    grad_right = (scale[:, :, None] * grad_moved).addcmul_(slope, pulled, value=-1.0).mul_(alpha)
    grad_left = torch.sub(grad_left, through, alpha=alpha)
    return grad_left.flatten(1, 2), grad_right.flatten(1, 2), grad_scale / norms


def plus(rows: Tensor, first: Tensor, second: Tensor, third: Tensor, alpha: float) -> Tensor:
    """Return rows + alpha (first second^T) third of every term, [P, terms, r, width]."""
    a, b, c = (part.flatten(0, 1) for part in (first, second, third))
    return torch.baddbmm(rows.view_as(c), torch.bmm(a, b.mT), c, alpha=alpha).view_as(third)
