"""How thin factors lie in memory: as rows, those of all terms of a projection together, projections of a kind in a row.

U^T [P, R, out] and V^T [P, R, in] with R = r_c + r_s, the common term's rows above the specific term's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Weights = Sequence[Tensor] | Tensor  # W [out, in] of P projections, or copies of them [P, out, in]


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


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Return the rows, or the terms, of all blocks, [P, all of them, ...]."""
    return parts[0] if len(parts) == 1 else torch.cat([*parts], dim=1)


def products(rows: Tensor, weights: Weights, transposed: bool = False) -> Tensor:
    """Return rows [P, M, out] times W, or rows [P, M, in] times W^T where `transposed`, in the dtype of the rows."""
    if isinstance(weights, Tensor):
        return torch.bmm(rows, weights.mT if transposed else weights)
    wide = (cast(weight, rows.dtype) for weight in weights)
    found = [one @ (weight.T if transposed else weight) for one, weight in zip(rows.unbind(), wide, strict=True)]
    return torch.stack(found) if len(found) > 1 else found[0][None]


def columns(rows: Tensor) -> Tensor:
    """Return rows [P, r, width] as [P, width, r], laid out like the factors they are gradients of."""
    return rows.mT.contiguous()
