"""G of many projections at once, and its way back, in plain PyTorch.

Where a projection sees one other modality, the factors and their Gram matrices are taken as they are, one of each a
projection. Where it sees several, every factor's Gram matrix is made once for all that see it, and its gradient from
the sum of theirs: operators and bytes of factors grow with the number of modalities, not with that of pairs; only r x r
matrices are added up pair by pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mora_kernels.factors import Factors
from mora_kernels.numerics import accumulation_dtype, scaled
from mora_kernels.torch.layout import stacked


class Coupled(NamedTuple):
    """What the way back from G to the factors it is made of needs, of projections that were built together.

    Attributes:
        other: of projections that see one other modality, its factors [P, width, r_c]; else None.
        every: of those that see several, the values [width, r_c] of each one's.
        scale: of the sum that G is.
    """

    other: Tensor | None
    every: list[list[Tensor]]
    scale: float

    def only(self, places: list[int]) -> Coupled:
        """Return the same of some of the projections."""
        other = None if self.other is None else self.other[places]
        return Coupled(other, [self.every[at] for at in places] if self.every else [], self.scale)


class Grams:
    """The Gram matrix of every factor that some projection sees beside others, each made once.

    Attributes:
        values: of each factor, by its id, what was read of it [width, r_c] and its Gram matrix, in the accumulation
            dtype of the weights.
    """

    def __init__(self, factors: Iterable[Factors]) -> None:
        alike: dict[tuple[torch.Size, torch.dtype], dict[int, Tensor]] = {}
        for one in factors:
            if one.other_common is not None and len(one.other_common) > 1:
                for other in one.other_common:
                    alike.setdefault((other.shape, accumulation_dtype(one.weight)), {})[id(other)] = other
        self.values: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = {}
        for (_, dtype), tensors in alike.items():
            wide = stacked([*tensors.values()], dtype)
            found = zip(tensors, wide.unbind(), torch.bmm(wide.mT, wide).unbind(), strict=True)
            self.values |= {(name, dtype): (value, gram) for name, value, gram in found}

    def of(self, factors: Sequence[Factors]) -> tuple[Coupled, Tensor]:
        """Return G [P, r_c, r_c] of projections of one kind, and what its way back needs."""
        first, dtype = factors[0], accumulation_dtype(factors[0].weight)
        if first.other_common is None:
            rank = first.common.shape[1]
            same = torch.eye(rank, dtype=dtype, device=first.weight.device)
            return Coupled(None, [], 1.0), same.expand(len(factors), rank, rank)
        if len(first.other_common) == 1:
            other = stacked([only for one in factors for only in one.other_common or ()], dtype)
            gram = torch.stack([torch.bmm(other.mT, other)]).sum(dim=0)
            return Coupled(other, [], first.gram_scale), scaled(gram, first.gram_scale)
        seen = [[self.values[id(other), dtype] for other in one.other_common or ()] for one in factors]
        each = torch.stack([gram for row in seen for _, gram in row])
        gram = each.unflatten(0, (len(factors), -1)).sum(dim=1)
        every = [[value for value, _ in row] for row in seen]
        return Coupled(None, every, first.gram_scale), scaled(gram, first.gram_scale)


class Reached:
    """The gradients of Gram matrices that reach factors which projections see beside others, added up by factor."""

    def __init__(self) -> None:
        self.parts: dict[int, tuple[Tensor, Tensor, list[Tensor]]] = {}

    def add(self, factors: Sequence[Factors], coupled: Coupled, both: Tensor) -> None:
        """Take dG + dG^T [P, r_c, r_c] of projections of one kind."""
        for one, values, grad in zip(factors, coupled.every, both.unbind(), strict=True):
            for other, value in zip(one.other_common or (), values, strict=True):
                self.parts.setdefault(id(other), (other, value, []))[2].append(grad)

    def gradients(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every factor with T (dG + dG^T), those of one shape by one product."""
        alike: dict[tuple[torch.Size, torch.dtype], list[tuple[Tensor, Tensor, Tensor]]] = {}
        for other, value, grads in self.parts.values():
            one = grads[0] if len(grads) == 1 else torch.stack(grads).sum(dim=0)
            alike.setdefault((value.shape, value.dtype), []).append((other, value, one))
        for found in alike.values():
            values, both = (torch.stack([row[place] for row in found]) for place in (1, 2))
            yield from zip([other for other, _, _ in found], torch.bmm(values, both).unbind(), strict=True)
