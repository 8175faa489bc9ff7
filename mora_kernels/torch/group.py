"""`build` for all projections of a group in plain PyTorch: what the fused engine does, one projection after another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mora_kernels.factors import Factors
from mora_kernels.numerics import accumulation_dtype, total_gram
from mora_kernels.torch.dropout import dropout
from mora_kernels.torch.linear import linear_gradients
from mora_kernels.torch.terms import Terms, Thin, cast, gradients, thin_factors
from mora_kernels.torch.weight import compose, shared_gradients


class Engine:
    """The values of a group in one compute dtype: per projection the flat [u | U^T | V^T] and W_eff.

    Both stay where they are for the engine's life, so that an autograd node that refers to them sees later builds.
    """

    at_once = False  # one after another: nothing is saved by building more than is asked for

    def __init__(self, factors: Sequence[Factors], dtype: torch.dtype, parameters: Sequence[Tensor]) -> None:
        self.dtype, self.parameters, self.factors = dtype, list(parameters), list(factors)
        self.thin = [thin_buffer(one) for one in factors]
        self.effective: list[Tensor] = [
            torch.empty_like(one.weight, dtype=dtype) if one.buffer is None else one.buffer for one in factors
        ]
        # The same memory under other version counters: no graph reads `thin` meanwhile, and rows beside W_eff in a
        # packed one may be saved for a backward pass, which stay as they are.
        self.thin_memory = [self.parts(index, thin.data) for index, thin in enumerate(self.thin)]
        self.memory = [effective.data for effective in self.effective]
        self.terms: list[Terms | None] = [None] * len(self.thin)
        self.grams = [one.common for one in factors]

    def build(self, factors: Sequence[Factors], indices: Iterable[int]) -> None:
        """Compute `thin` and `effective` of these projections from the factors' present values."""
        self.factors = list(factors)
        grams: dict[tuple[int, ...], Tensor] = {}
        for index in indices:
            one = self.factors[index]
            key = (one.common.shape[1], *map(id, one.other_common or ()))
            if key not in grams:
                grams[key] = total_gram(one.common, one.other_common)
            gram = self.grams[index] = grams[key].to(accumulation_dtype(one.weight))
            thin, self.terms[index] = thin_factors(one, gram)
            for memory, value in zip(self.thin_memory[index], thin, strict=True):
                memory.copy_(value)
            compose_into(self.memory[index], one.weight, *thin)

    def release(self, index: int) -> None:
        """Nothing of a projection waits for a backward pass here."""

    def parts(self, index: int, flat: Tensor) -> Thin:
        """Return u [in], U^T [R, out], V^T [R, in], views of a flat [u | U^T | V^T]."""
        one = self.factors[index]
        (height, width), rank = one.weight.shape, sum(one.ranks)
        u, left, right = flat.split([width, rank * height, rank * width])
        return u, left.view(rank, height), right.view(rank, width)

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
        total: dict[int, Tensor] = {}
        grams: list[tuple[int, Tensor]] = []
        found: list[tuple[Tensor, Tensor]] = []
        for index, grad in enumerate(grads):
            if grad is None:
                continue
            one, terms = self.factors[index], self.terms[index]
            assert terms is not None, "nobody has a gradient of what was not built"
            gram, own = gradients(one, self.grams[index], terms, self.parts(index, grad))
            grams.append((index, gram))
            for tensor, value in zip(one.own, own, strict=True):
                if tensor is not None and value is not None:
                    found.append((tensor, value))
        for tensor, value in [*found, *shared_gradients(self.factors, grams)]:
            total[id(tensor)] = value if id(tensor) not in total else total[id(tensor)] + value
        return [cast(total[id(tensor)], tensor.dtype) if id(tensor) in total else None for tensor in self.parameters]

    def drop(self, x: Tensor, p: float, copies: int, dtype: torch.dtype, mask: Tensor | None) -> list[Tensor]:
        """Return `copies` dropped copies of x in `dtype`, each with its own mask."""
        if mask is None:
            return [dropout(x, p).to(dtype) for _ in range(copies)]
        return [(x * kept * (1 / (1 - p))).to(dtype) for kept in mask]


def compose_into(effective: Tensor, weight: Tensor, u: Tensor, left: Tensor, right: Tensor) -> None:
    """Write W * u + U V^T [out, in], equation (3), rounded once to the dtype of `effective`; U and V as rows."""
    if effective.dtype == u.dtype == weight.dtype:
        torch.mul(weight, u, out=effective)
        effective.addmm_(left.T, right)
    else:
        effective.copy_(compose(weight, u, left, right, effective.dtype))


def thin_buffer(one: Factors) -> Tensor:
    """Return where the flat [u | U^T | V^T] of a projection is written."""
    height, width = one.weight.shape
    length = width + (height + width) * sum(one.ranks)
    return torch.empty(length, dtype=accumulation_dtype(one.weight), device=one.weight.device)
