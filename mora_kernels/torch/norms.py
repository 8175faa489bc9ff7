"""Squared column norms of W + alpha U V^T, for all terms of alike projections; thin factors are rows.

|w + alpha c|^2 = |w|^2 + alpha sum_k V[k] (2 U^T W + alpha (U^T U) V)[k] reads W once for all terms, where a sum over
W + alpha U V^T makes a matrix of its size anew for each term. It cancels where c is about -w / alpha. So it is taken on
a CPU only, where the host may look at a value without waiting for a device: each sum is held against the sizes that
went into it, and a projection of which a column is less than 1 / `LOSS` of them gets the sums themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mora_kernels.torch.layout import Block, Weights, cast, joined, products

LOSS = 16.0  # how often the rounding error of a square may be that of the sum itself


def squares(
    weights: Weights, left: Tensor, right: Tensor, alpha: float, blocks: Sequence[tuple[Block, slice]]
) -> tuple[Tensor, Tensor | None]:
    """Return |column|^2 of W + alpha U V^T for each term [P, terms, in]; and (W + alpha U V^T)^T U as rows [P, R, in].

    Args:
        weights: frozen W of P projections, [out, in] each.
        left, right: U^T [P, R, out] and V^T [P, R, in] in the accumulation dtype, the rows of all terms.
        alpha: factor of the updates.
        blocks: which rows belong to terms of one rank.

    The second is what the way back needs; None where the sums were made directly.
    """
    if not can_ask(weights[0], left):
        every = [direct(weight, left[at], right[at], alpha, blocks) for at, weight in enumerate(weights)]
        return torch.stack(every), None
    sums, size, pulled = expanded(weights, left, right, alpha, blocks)
    lost = (sums * LOSS >= size).logical_not_().flatten(1).any(dim=1)  # NaN counts as lost
    for at, is_lost in enumerate(lost.tolist()):
        if is_lost:
            sums[at] = direct(weights[at], left[at], right[at], alpha, blocks)
    return sums, pulled


def can_ask(weight: Tensor, left: Tensor) -> bool:
    """Whether a value is there to look at, at once: in memory of the CPU, outside of a compiler's trace."""
    return weight.device.type == "cpu" and type(left) is Tensor and not torch.compiler.is_compiling()


def direct(weight: Tensor, left: Tensor, right: Tensor, alpha: float, blocks: Sequence[tuple[Block, slice]]) -> Tensor:
    """Return the sums [terms, in] of one projection from W + alpha U V^T, term by term."""
    wide, sums = cast(weight, left.dtype), []  # one at a time: all of a model's in half precision would fill memory
    for block, _ in blocks:
        for first in range(block.first, block.first + block.terms * block.rank, block.rank):
            rows = slice(first, first + block.rank)
            moved = torch.addmm(wide, left[rows].T, right[rows], alpha=alpha)
            sums.append(moved.mul_(moved).sum(dim=0))
    return torch.stack(sums)


def expanded(
    weights: Weights, left: Tensor, right: Tensor, alpha: float, blocks: Sequence[tuple[Block, slice]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sums [P, terms, in] expanded, the sizes of what was added up, and the second result of `squares`."""
    own, frozen = right.new_empty(right.shape[0], right.shape[2]), products(left, weights)
    if isinstance(weights, Tensor):
        torch.sum(weights * weights, 1, out=own)
    else:
        scratch = torch.empty_like(weights[0], dtype=left.dtype)
        for at, weight in enumerate(weights):
            wide = cast(weight, left.dtype)
            torch.sum(torch.mul(wide, wide, out=scratch), 0, out=own[at])
    sums, sizes, pulled = [], [], []
    for block, _ in blocks:
        rows, thin = block(right), block(left).flatten(0, 1)
        flat, inner = rows.flatten(0, 1), torch.bmm(thin, thin.mT)
        moved = torch.baddbmm(block(frozen).flatten(0, 1), inner, flat, alpha=alpha).view_as(rows)
        pulled.append(moved.flatten(1, 2))
        sums.append(torch.add(own[:, None], (block(frozen) + moved).mul_(rows).sum(dim=2), alpha=alpha))
        flat = flat.abs()
        largest = torch.bmm(inner.abs_(), flat).mul_(flat).view_as(rows).sum(dim=2)
        sizes.append(torch.add(own[:, None], largest, alpha=alpha * alpha))
    return joined(sums), joined(sizes), joined(pulled)
