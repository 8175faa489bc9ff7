"""Projections of one kind lie one behind the other in memory: what the torch path keeps of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mora_kernels.factors import Factors
from mora_kernels.numerics import accumulation_dtype
from mora_kernels.torch.layout import Weights
from mora_kernels.torch.terms import Thin
from mora_kernels.torch.weight import compose

SMALL, COPIED = 1 << 16, 1 << 20  # elements of a W, of all of a kind: to that, one operation on copies takes least


def kind_of(one: Factors) -> tuple[Any, ...]:
    """Return what projections must have in common to be built by the same operations."""
    others = None if one.other_common is None else tuple(other.shape for other in one.other_common)
    return one.weight.shape, accumulation_dtype(one.weight), one.ranks, one.common_out is None, others, one.gram_scale


class Kind:
    """P projections of one kind.

    Args:
        factors: of all of them.
        dtype: in which W_eff is wanted.

    Attributes:
        thin: [P, length], each row the flat [u | U^T | V^T] of one, in the accumulation dtype.
        weights: copies of W [P, out, in] where these are small; else None.
        effective: W_eff [P, out, in] where `weights` are there.
    """

    def __init__(self, factors: Sequence[Factors], dtype: torch.dtype) -> None:
        one = factors[0]
        (self.height, self.width), self.rank = one.weight.shape, sum(one.ranks)
        length = self.width + (self.height + self.width) * self.rank
        exact, device = accumulation_dtype(one.weight), one.weight.device
        self.thin = torch.empty((len(factors), length), dtype=exact, device=device)
        # The same memory under another version counter: no graph reads `thin` meanwhile.
        self.memory = self.parts(self.thin.data)
        self.weights: Tensor | None = None
        size = one.weight.numel()
        if size <= SMALL and size * len(factors) <= COPIED and all(other.buffer is None for other in factors):
            shape = (len(factors), self.height, self.width)
            self.weights = torch.empty(shape, dtype=exact, device=device)
            self.effective = torch.empty(shape, dtype=dtype, device=device)

    def parts(self, flat: Tensor) -> Thin:
        """Return u [..., in], U^T [..., R, out], V^T [..., R, in], views of flat [..., u | U^T | V^T]."""
        u, left, right = flat.split([self.width, self.rank * self.height, self.rank * self.width], dim=-1)
        return u, left.unflatten(-1, (self.rank, self.height)), right.unflatten(-1, (self.rank, self.width))

    def frozen(self, rows: slice | list[int], factors: Sequence[Factors]) -> Weights:
        """Return W of these rows, as they are now."""
        given = [one.weight for one in factors]
        if self.weights is None:
            return given
        if len(given) == len(self.weights) and all(weight.dtype == self.weights.dtype for weight in given):
            return torch.stack(given, out=self.weights)
        numbers = range(len(self.weights))[rows] if isinstance(rows, slice) else rows
        for row, weight in zip(numbers, given, strict=True):
            self.weights[row].copy_(weight)
        return self.weights[rows]

    def write(self, rows: slice | list[int], thin: Thin) -> None:
        """Put thin factors where they belong."""
        for memory, value in zip(self.memory, thin, strict=True):
            memory[rows] = value

    def compose(self, rows: slice, weights: Tensor, thin: Thin) -> None:
        """Write W_eff of these rows from copies of W."""
        u, left, right = thin
        effective = self.effective[rows]
        if effective.dtype == u.dtype:
            torch.mul(weights, u[:, None], out=effective).baddbmm_(left.mT, right)
        else:
            effective.copy_((weights * u[:, None]).baddbmm_(left.mT, right))


def chosen(rows: list[int]) -> slice | list[int]:
    """Return ascending rows as a slice, where nothing is left out between them."""
    return slice(rows[0], rows[-1] + 1) if rows[-1] - rows[0] + 1 == len(rows) else rows


def compose_into(effective: Tensor, weight: Tensor, u: Tensor, left: Tensor, right: Tensor) -> None:
    """Write W * u + U V^T [out, in], equation (3), rounded once to the dtype of `effective`; U and V as rows."""
    if effective.dtype == u.dtype == weight.dtype:
        torch.mul(weight, u, out=effective)
        effective.addmm_(left.T, right)
    else:
        effective.copy_(compose(weight, u, left, right, effective.dtype))
