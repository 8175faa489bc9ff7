"""`build` for all projections of a group in plain PyTorch: those of one kind together, by the same operations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mora_kernels.factors import Factors
from mora_kernels.numerics import accumulation_dtype, scaled, untracked
from mora_kernels.torch.coupling import Coupled, Grams, Reached
from mora_kernels.torch.dropout import dropout
from mora_kernels.torch.kinds import Kind, chosen, compose_into, kind_of
from mora_kernels.torch.layout import Weights, cast, stacked
from mora_kernels.torch.linear import is_narrow, linear_gradients, narrow_products
from mora_kernels.torch.terms import Terms, Thin, gradients, thin_factors


class Batch(NamedTuple):
    """Projections of one kind that were built together, and what their way back needs.

    `coupled` is that of G, to the factors of the other modalities.
    """

    indices: list[int]
    factors: list[Factors]
    weights: Weights
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
        weights, factors = [self.weights[at] for at in places], [self.factors[at] for at in places]
        return Batch(chosen, factors, weights, self.coupled.only(places), terms)


class Engine:
    """The values of a group in one compute dtype: per projection the flat [u | U^T | V^T], and W_eff where it is used.

    Both stay where they are for the engine's life, so that an autograd node that refers to them sees later builds.
    """

    at_once = False  # the build of all takes longer than the build of some

    def __init__(self, factors: Sequence[Factors], dtype: torch.dtype, parameters: Sequence[Tensor]) -> None:
        self.dtype, self.parameters, self.factors = dtype, list(parameters), list(factors)
        members: dict[Any, list[int]] = {}
        for index, one in enumerate(factors):
            members.setdefault(kind_of(one), []).append(index)
        kinds = [Kind([self.factors[index] for index in found], dtype) for found in members.values()]
        found = zip(kinds, members.values(), strict=True)
        places = {index: (kind, row) for kind, indices in found for row, index in enumerate(indices)}
        self.places = [places[index] for index in range(len(factors))]
        self.thin = [kind.thin[row] for kind, row in self.places]
        # None: not asked for so far.
        self.effective: list[Tensor | None] = [
            kind.effective[row] if kind.weights is not None else one.buffer
            for one, (kind, row) in zip(factors, self.places, strict=True)
        ]
        self.composed = [False] * len(factors)  # W_eff is that of the last build
        self.slices: dict[tuple[int, ...], Thin | None] = {}
        self.batches: list[Batch | None] = [None] * len(factors)

    def build(self, factors: Sequence[Factors], indices: Iterable[int], lasting: bool = False) -> None:
        """Compute `thin` of these from the factors' present values; W_eff too if it is to last or has a buffer."""
        self.factors = list(factors)
        alike: dict[Any, list[int]] = {}
        for index in sorted(indices):
            alike.setdefault((id(self.places[index][0]), self.factors[index].alpha), []).append(index)
        every = Grams(self.factors[index] for members in alike.values() for index in members)
        for members in alike.values():
            kind, some = self.places[members[0]][0], [self.factors[index] for index in members]
            rows = chosen([self.places[index][1] for index in members])
            coupled, gram = every.of(some)
            weights = kind.frozen(rows, some)
            thin, terms = thin_factors(some, gram, weights)
            batch = Batch(members, some, weights, coupled, terms)
            kind.write(rows, thin)
            if copied := isinstance(rows, slice) and isinstance(weights, Tensor):
                kind.compose(rows, weights, thin)
            for index in members:
                self.batches[index], self.composed[index] = batch, copied
                if not copied and (lasting or self.factors[index].buffer is not None):
                    self.compose(index)

    def whole(self, index: int) -> Tensor:
        """Return W_eff [out, in] of the last build, in the compute dtype; made when it is first asked for."""
        if not self.composed[index]:
            with untracked(self.factors[index].weight):
                self.compose(index)
        effective = self.effective[index]
        assert effective is not None, "it was composed"
        return effective

    def compose(self, index: int) -> None:
        """Write W_eff of the last build."""
        weight, effective = self.factors[index].weight, self.effective[index]
        if effective is None:
            effective = self.effective[index] = torch.empty_like(weight, dtype=self.dtype)
        # Another version counter: rows beside W_eff in a packed one, which stay, may wait for a backward pass.
        compose_into(effective.data, weight, *self.thin_memory(index))
        self.composed[index] = True

    def thin_memory(self, index: int) -> Thin:
        """Return u [in], U^T [R, out], V^T [R, in] of the last build."""
        kind, row = self.places[index]
        u, left, right = kind.memory
        return u[row], left[row], right[row]

    def release(self, index: int) -> None:
        """Nothing of a projection waits for a backward pass here."""

    def thin_of(self, index: int, flat: Tensor) -> Thin:
        """Return u [in], U [out, R], V [in, R] of a flat one."""
        u, left, right = self.places[index][0].parts(flat)
        return u, left.T, right.T

    def linear_backward(
        self, index: int, grad: Tensor, x: Tensor | None, needs_x: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of x [M, in] and of `thin[index]` (None where x is None) from dY [M, out]."""
        if x is None:
            return grad @ self.whole(index), None
        u, left, right = self.thin_memory(index)
        thin = u[None], left[None], right[None]
        grad_x, *grads = linear_gradients(grad[None], x[None], [self.factors[index].weight], thin, needs_x)
        return None if grad_x is None else grad_x[0], torch.cat([part.flatten() for part in grads])

    def together(self, indices: tuple[int, ...]) -> Thin | None:
        """Return u, U^T, V^T [P, ...] of projections that go through the same operations; None for those that cannot.

        Those are of one kind and one behind the other, and computed with in the accumulation dtype.
        """
        if indices not in self.slices:
            kind, first = self.places[indices[0]]
            alike = [self.places[index] for index in indices] == [(kind, first + at) for at in range(len(indices))]
            exact = all(accumulation_dtype(self.factors[index].weight) == self.dtype for index in indices)
            u, left, right = (part[first : first + len(indices)] for part in kind.memory)
            self.slices[indices] = (u, left, right) if alike and exact else None
        return self.slices[indices]

    def narrow(self, indices: tuple[int, ...], rows: int) -> Thin | None:
        """Return `together` where y of so many rows takes less work without W_eff, and that is not there; else None."""
        if all(self.composed[index] for index in indices):
            return None
        return self.together(indices) if is_narrow(rows, self.factors[indices[0]].weight, self.dtype) else None

    def products(
        self, indices: tuple[int, ...], x: Tensor, biases: Sequence[Tensor | None]
    ) -> tuple[Sequence[Tensor], Tensor | None]:
        """Return y [M, out] of `together` projections of x [P or 1, M, in]; and x V [P, M, R] if it was made."""
        if (thin := self.narrow(indices, x.shape[1])) is not None:
            y, read = narrow_products(x, [self.factors[index].weight for index in indices], biases, thin)
            return y.unbind(), read
        inputs = x.unbind() if len(x) > 1 else [x[0]] * len(indices)
        pairs = zip(inputs, indices, biases, strict=True)
        return [torch.nn.functional.linear(rows, self.whole(index), bias) for rows, index, bias in pairs], None

    def products_backward(
        self, indices: tuple[int, ...], grad: Tensor, x: Tensor, read: Tensor | None, needs_x: bool
    ) -> tuple[Tensor | None, Tensor]:
        """Return the gradients of x [P, M, in] and of `thin` [P, ...] of `together` projections from dY [P, M, out]."""
        (kind, first), thin = self.places[indices[0]], self.together(indices)
        assert thin is not None, "they went forward together"
        weights: Weights = [self.factors[index].weight for index in indices]
        if kind.weights is not None:
            weights = kind.weights[first : first + len(indices)]
        grad_x, *grads = linear_gradients(grad, x, weights, thin, needs_x, read)
        return grad_x, torch.cat([part.flatten(1) for part in grads], dim=1)

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
        kind, _ = self.places[batch.indices[0]]
        found = gradients(batch.factors, batch.terms, kind.parts(flat), batch.weights)
        for name, grad in found._asdict().items():
            if grad is not None and name != "gram":
                yield from summed([getattr(one, name) for one in batch.factors], grad)
        both = scaled(found.gram + found.gram.mT, batch.coupled.scale)
        if batch.coupled.other is not None:
            others = [other for one in batch.factors for other in one.other_common or ()]
            yield from summed(others, torch.bmm(batch.coupled.other, both))
        elif batch.coupled.every:
            reached.add(batch.factors, batch.coupled, both)

    def drop(self, x: Tensor, p: float, copies: int, dtype: torch.dtype, mask: Tensor | None) -> Tensor:
        """Return `copies` dropped copies of x in `dtype`, each with its own mask, [copies, *x.shape]."""
        if mask is not None:
            return (x * mask * (1 / (1 - p))).to(dtype)
        return cast(dropout(x.expand(copies, *x.shape), p), dtype)


def summed(tensors: Sequence[Tensor], grads: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """Return (tensor, its gradient) from gradients [P, ...]; those of equal neighbours (q and v's S) are added up."""
    distinct = {id(tensor): tensor for tensor in tensors}
    shared = len(tensors) // len(distinct)
    if shared == 1 or any(tensor is not tensors[at - at % shared] for at, tensor in enumerate(tensors)):
        return zip(tensors, grads.unbind(), strict=True)
    return zip(distinct.values(), grads.unflatten(0, (-1, shared)).sum(dim=1).unbind(), strict=True)
