"""`build` for all projections of a group in plain PyTorch: those of one kind together, by the same operations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mora_kernels.factors import Factors
from mora_kernels.numerics import accumulation_dtype, scaled
from mora_kernels.torch.coupling import Coupled, Grams, Reached
from mora_kernels.torch.dropout import dropout
from mora_kernels.torch.linear import linear_gradients
from mora_kernels.torch.terms import Terms, Thin, cast, gradients, stacked, thin_factors
from mora_kernels.torch.weight import compose


class Batch(NamedTuple):
    """Projections of one kind that were built together, and what their way back needs.

    `coupled` is that of G, to the factors of the other modalities.
    """

    indices: list[int]
    factors: list[Factors]
    coupled: Coupled
    terms: Terms

    def only(self, chosen: list[int]) -> Batch:
        """Return the same of some of them."""
        if chosen == self.indices:
            return self
        places = [self.indices.index(index) for index in chosen]
        terms = self.terms._replace(
            **{name: part[places] for name, part in self.terms._asdict().items() if part is not None}
        )
        return Batch(chosen, [self.factors[at] for at in places], self.coupled.only(places), terms)


class Engine:
    """The values of a group in one compute dtype: per projection the flat [u | U^T | V^T] and W_eff.

    Both stay where they are for the engine's life, so that an autograd node that refers to them sees later builds.
    """

    at_once = False  # the build of all takes longer than the build of some

    def __init__(self, factors: Sequence[Factors], dtype: torch.dtype, parameters: Sequence[Tensor]) -> None:
        self.dtype, self.parameters, self.factors = dtype, list(parameters), list(factors)
        kinds: dict[Any, list[int]] = {}
        for index, one in enumerate(factors):
            kinds.setdefault(kind(one), []).append(index)
        # Those of a kind lie one behind the other; `places` says in which buffer, and which of its rows.
        buffers = [thin_buffer(self.factors[members[0]], len(members)) for members in kinds.values()]
        self.places = {
            index: (number, row) for number, members in enumerate(kinds.values()) for row, index in enumerate(members)
        }
        self.thin = [buffers[number][row] for number, row in map(self.places.__getitem__, range(len(factors)))]
        self.effective: list[Tensor] = [
            torch.empty_like(one.weight, dtype=dtype) if one.buffer is None else one.buffer for one in factors
        ]
        # The same memory under other version counters: no graph reads `thin` meanwhile, and rows beside W_eff in a
        # packed one may be saved for a backward pass, which stay as they are.
        self.buffers = [buffer.data for buffer in buffers]
        self.thin_memory = [self.parts(index, thin.data) for index, thin in enumerate(self.thin)]
        self.memory = [effective.data for effective in self.effective]
        self.batches: list[Batch | None] = [None] * len(self.thin)

    def build(self, factors: Sequence[Factors], indices: Iterable[int]) -> None:
        """Compute `thin` and `effective` of these projections from the factors' present values."""
        self.factors = list(factors)
        alike: dict[Any, list[int]] = {}
        for index in sorted(indices):
            alike.setdefault((self.places[index][0], self.factors[index].alpha), []).append(index)
        every = Grams(self.factors[index] for members in alike.values() for index in members)
        for (number, _), members in alike.items():
            some = [self.factors[index] for index in members]
            coupled, gram = every.of(some)
            thin, terms = thin_factors(some, gram)
            batch = Batch(members, some, coupled, terms)
            rows = chosen([self.places[index][1] for index in members])
            buffer = self.buffers[number]
            for memory, value in zip(self.parts(members[0], buffer), thin, strict=True):
                memory[rows] = value
            for index in members:
                self.batches[index] = batch
                compose_into(self.memory[index], self.factors[index].weight, *self.thin_memory[index])

    def release(self, index: int) -> None:
        """Nothing of a projection waits for a backward pass here."""

    def parts(self, index: int, flat: Tensor) -> Thin:
        """Return u [..., in], U^T [..., R, out], V^T [..., R, in], views of flat [..., u | U^T | V^T] of this kind."""
        one = self.factors[index]
        (height, width), rank = one.weight.shape, sum(one.ranks)
        u, left, right = flat.split([width, rank * height, rank * width], dim=-1)
        return u, left.unflatten(-1, (rank, height)), right.unflatten(-1, (rank, width))

    def thin_of(self, index: int, flat: Tensor) -> Thin:
        """Return u [in], U [out, R], V [in, R] of a flat one."""
        u, left, right = self.parts(index, flat)
        return u, left.T, right.T

    def linear_backward(
        self, index: int, grad: Tensor, x: Tensor | None, needs_x: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of x [M, in] and of `thin[index]` (None where x is None) from dY [M, out]."""
        if x is None:
            return grad @ self.effective[index], None
        weight = self.factors[index].weight
        grad_x, *grads = linear_gradients(grad, x, weight, *self.thin_memory[index], needs_x)
        return grad_x, torch.cat([part.view(-1) for part in grads])

    def backward(self, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the gradient of every parameter from those of `thin`; None for one that no gradient reaches."""
        reached: dict[int, tuple[Batch, list[int]]] = {}
        for index, grad in enumerate(grads):
            if grad is not None:
                batch = self.batches[index]
                assert batch is not None, "nobody has a gradient of what was not built"
                reached.setdefault(id(batch), (batch, []))[1].append(index)
        total: dict[int, Tensor] = {}
        reaching = Reached()
        for batch, members in reached.values():
            flat = [grad for index in members if (grad := grads[index]) is not None]
            for tensor, value in self.batch_gradients(batch.only(members), stacked(flat, flat[0].dtype), reaching):
                total[id(tensor)] = value if id(tensor) not in total else total[id(tensor)] + value
        for tensor, value in reaching.gradients():
            total[id(tensor)] = value if id(tensor) not in total else total[id(tensor)] + value
        return [cast(total[id(tensor)], tensor.dtype) if id(tensor) in total else None for tensor in self.parameters]

    def batch_gradients(self, batch: Batch, flat: Tensor, reached: Reached) -> Iterable[tuple[Tensor, Tensor]]:
        """Yield (factor, its gradient), more than once for a factor of several projections, from those of thin.

        Factors that projections see beside others get what `reached` adds up.
        """
        found = gradients(batch.factors, batch.terms, self.parts(batch.indices[0], flat))
        for name, grad in found._asdict().items():
            if grad is not None and name != "gram":
                yield from summed([getattr(one, name) for one in batch.factors], grad)
        both = scaled(found.gram + found.gram.mT, batch.coupled.scale)
        if batch.coupled.other is not None:
            others = [other for one in batch.factors for other in one.other_common or ()]
            yield from summed(others, torch.bmm(batch.coupled.other, both))
        elif batch.coupled.every:
            reached.add(batch.factors, batch.coupled, both)

    def drop(self, x: Tensor, p: float, copies: int, dtype: torch.dtype, mask: Tensor | None) -> list[Tensor]:
        """Return `copies` dropped copies of x in `dtype`, each with its own mask."""
        if mask is None:
            return [dropout(x, p).to(dtype) for _ in range(copies)]
        return [(x * kept * (1 / (1 - p))).to(dtype) for kept in mask]


def kind(one: Factors) -> tuple[Any, ...]:
    """Return what projections must have in common to be built by the same operations."""
    others = None if one.other_common is None else tuple(other.shape for other in one.other_common)
    return one.weight.shape, accumulation_dtype(one.weight), one.ranks, one.common_out is None, others, one.gram_scale


def chosen(rows: list[int]) -> slice | list[int]:
    """Return ascending rows as a slice, where nothing is left out between them."""
    return slice(rows[0], rows[-1] + 1) if rows[-1] - rows[0] + 1 == len(rows) else rows


def summed(tensors: Sequence[Tensor], grads: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """Return (tensor, its gradient) from gradients [P, ...]; those of equal neighbours (q and v's S) are added up."""
    distinct = {id(tensor): tensor for tensor in tensors}
    shared = len(tensors) // len(distinct)
    if shared == 1 or any(tensor is not tensors[at - at % shared] for at, tensor in enumerate(tensors)):
        return zip(tensors, grads.unbind(), strict=True)
    return zip(distinct.values(), grads.unflatten(0, (-1, shared)).sum(dim=1).unbind(), strict=True)


def compose_into(effective: Tensor, weight: Tensor, u: Tensor, left: Tensor, right: Tensor) -> None:
    """Write W * u + U V^T [out, in], equation (3), rounded once to the dtype of `effective`; U and V as rows."""
    if effective.dtype == u.dtype == weight.dtype:
        torch.mul(weight, u, out=effective)
        effective.addmm_(left.T, right)
    else:
        effective.copy_(compose(weight, u, left, right, effective.dtype))


def thin_buffer(one: Factors, count: int) -> Tensor:
    """Return where the flat [u | U^T | V^T] of `count` projections of a kind are written, a row each."""
    height, width = one.weight.shape
    length = width + (height + width) * sum(one.ranks)
    return torch.empty((count, length), dtype=accumulation_dtype(one.weight), device=one.weight.device)
