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
from mora_kernels.torch.layout import Weights, blocks, columns, joined, optional, products, stacked
from mora_kernels.torch.norms import squares

Thin = tuple[Tensor, Tensor, Tensor]


class Terms(NamedTuple):
    """What the way back through P projections of one kind needs, in the accumulation dtype.

    Attributes:
        gram: G [P, r_c, r_c];  outer: S_out [P, out, r_c], None where that is S.
        left: U^T = [G S_out^T; B] [P, R, out];  right: [S^T; A^T] [P, R, in].
        norms, scale: of each term [P, terms, in]: clamped column norms, and magnitude over norm.
        pulled: (W + alpha U V^T)^T U of each term as rows [P, R, in], where the norms were made from it; else None.
    """

    gram: Tensor
    outer: Tensor | None
    left: Tensor
    right: Tensor
    norms: Tensor
    scale: Tensor
    pulled: Tensor | None


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


def thin_factors(factors: Sequence[Factors], gram: Tensor, weights: Weights) -> tuple[Thin, Terms]:
    """Return u [P, in], U^T [P, R, out], V^T [P, R, in] of projections of one kind, and what their way back needs."""
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
    norms, pulled = squares(weights, left, right, alpha, blocks(ranks))
    norms.sqrt_().clamp_(min=NORM_FLOOR)
    scale = scale / norms
    moved = joined([(scale[:, of, None] * view(right)).flatten(1, 2) for view, of in blocks(ranks)])
    return (scale.sum(dim=1), left, moved.mul_(alpha)), Terms(gram, outer, left, right, norms, scale, pulled)


def specific(one: Factors) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return A, B and m_s."""
    return one.specific_a, one.specific_b, one.specific_magnitude


def gradients(factors: Sequence[Factors], terms: Terms, grads: Thin, weights: Weights) -> Gradients:
    """Return the gradients of G and of the factors from those of (u, U^T, V^T), in the accumulation dtype."""
    ranks, alpha, found = factors[0].ranks, factors[0].alpha, []
    common_rank = ranks[0]
    for view, of in blocks(ranks):
        pulled = None if terms.pulled is None else view(terms.pulled)
        wide = Wide(view(terms.left), view(terms.right), view(grads[1]), view(grads[2]), pulled)
        found.append(block_gradients(weights, wide, terms.norms[:, of], terms.scale[:, of], grads[0], alpha))
    left, right, magnitudes = (joined(each) for each in zip(*found, strict=True))
    of_common, own = left[:, :common_rank], right[:, :common_rank]
    outer = terms.right[:, :common_rank].mT if terms.outer is None else terms.outer
    grad_gram, moved = torch.bmm(of_common, outer).mT, torch.bmm(terms.gram, of_common)
    grad_common, grad_out = (own + moved, None) if terms.outer is None else (own, columns(moved))
    grad_a = grad_b = grad_specific = None
    if magnitudes.shape[1] == 2:
        grad_a, grad_b, grad_specific = columns(right[:, common_rank:]), left[:, common_rank:], magnitudes[:, 1]
    return Gradients(grad_gram, columns(grad_common), grad_a, grad_b, magnitudes[:, 0], grad_specific, grad_out)


class Wide(NamedTuple):
    """The rows of a block's terms, [P, terms, r, out or in] each: U^T, [S^T; A^T], the gradients of U^T and of V^T.

    `pulled` is that of `Terms`.
    """

    left: Tensor
    right: Tensor
    grad_left: Tensor
    grad_moved: Tensor
    pulled: Tensor | None


def block_gradients(weights: Weights, wide: Wide, norms: Tensor, scale: Tensor, grad_u: Tensor, alpha: float) -> Thin:
    """Return the gradients of U^T [P, rows, out], [S^T; A^T] [P, rows, in] and magnitudes [P, terms, in] of a block.

    V is alpha p [S | A] with p the scale.
    """
    left, right, grad_left, grad_moved, pulled = wide
    grad_scale = torch.add(grad_u[:, None], (right * grad_moved).sum(dim=2), alpha=alpha)
    slope = torch.where(norms > NORM_FLOOR, scale / norms.square(), 0.0).mul_(grad_scale)[:, :, None]
    weighted = slope * right
    through = plus(products(weighted.flatten(1, 2), weights, transposed=True), weighted, right, left, alpha)
    if pulled is None:
        pulled = plus(products(left.flatten(1, 2), weights), left, left, right, alpha)
    grad_right = (scale[:, :, None] * grad_moved).addcmul_(slope, pulled, value=-1.0).mul_(alpha)
    grad_left = torch.sub(grad_left, through, alpha=alpha)
    return grad_left.flatten(1, 2), grad_right.flatten(1, 2), grad_scale / norms


def plus(rows: Tensor, first: Tensor, second: Tensor, third: Tensor, alpha: float) -> Tensor:
    """Return rows + alpha (first second^T) third of every term, [P, terms, r, width]."""
    a, b, c = (part.flatten(0, 1) for part in (first, second, third))
    return torch.baddbmm(rows.view_as(c), torch.bmm(a, b.mT), c, alpha=alpha).view_as(third)
