"""`build` for all projections of a group in plain PyTorch: what the fused engine does, one projection after another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from mora_kernels.factors import Factors, cut
from mora_kernels.numerics import accumulation_dtype, total_gram
from mora_kernels.torch.linear import linear_gradients
from mora_kernels.torch.weight import compose, factor_gradients, thin_factors


class Engine:
    """The values of a group in one compute dtype: per projection the flat [u | U | V'] and W_eff.

    Both stay where they are for the engine's life, so that an autograd node that refers to them sees later builds.
    """

    at_once = False  # one after another: nothing is saved by building more than is asked for

    def __init__(self, factors: Sequence[Factors], dtype: torch.dtype, parameters: Sequence[Tensor]) -> None:
        self.dtype, self.parameters, self.factors = dtype, list(parameters), list(factors)
        self.thin = [thin_buffer(one) for one in factors]
        self.effective: list[Tensor] = [
            torch.empty_like(one.weight, dtype=dtype) if one.buffer is None else one.buffer for one in factors
        ]
        self.norms: list[list[Tensor]] = [[] for _ in factors]
        self.grams: list[Tensor] = [one.common for one in factors]

    def build(self, factors: Sequence[Factors], indices: Iterable[int]) -> None:
        """Compute `thin` and `effective` of these projections from the factors' present values."""
        self.factors = list(factors)
        for index in indices:
            one = self.factors[index]
            gram = total_gram(one.common, one.other_common).to(accumulation_dtype(one.weight))
            u, left, right, self.norms[index] = thin_factors(one, gram)
            self.grams[index] = gram
            with _unsafe_preserve_version_counter(self.thin[index]):  # no graph reads it meanwhile
                self.thin[index].copy_(torch.cat([u, left.flatten(), right.flatten()]))
            # Rows beside it in a packed W_eff may be saved for a backward pass: they stay as they are.
            with _unsafe_preserve_version_counter(self.effective[index]):
                self.effective[index].copy_(compose(one.weight, u, left, right, self.dtype))

    def release(self, index: int) -> None:
        """Nothing of a projection waits for a backward pass here."""

    def parts(self, index: int, flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return u [in], U [out, r], V' [in, r] of a flat [u | U | V']."""
        return cut(flat, *self.factors[index].weight.shape)

    def linear_backward(
        self, index: int, grad: Tensor, x: Tensor | None, needs_x: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of x [M, in] and of `thin[index]` (None where x is None) from dY [M, out]."""
        if x is None:
            return grad @ self.effective[index], None
        thin = self.parts(index, self.thin[index])
        grad_x, *grads = linear_gradients(grad, x, self.factors[index].weight, *thin, needs_x)
        return grad_x, torch.cat([part.flatten() for part in grads])

    def backward(self, grads: Sequence[Tensor | None]) -> list[Tensor]:
        """Return the gradient of every parameter from those of `thin`."""
        total = {id(tensor): torch.zeros_like(tensor, dtype=accumulation_dtype(tensor)) for tensor in self.parameters}
        for index, grad in enumerate(grads):
            if grad is None:
                continue
            one = self.factors[index]
            gram, own = factor_gradients(one, self.grams[index], self.norms[index], self.parts(index, grad))
            for tensor, value in zip(one.own, own, strict=True):
                if tensor is not None and value is not None:
                    total[id(tensor)] += value
            for other in one.other_common or ():
                total[id(other)] += other.to(gram.dtype) @ (gram + gram.T)
        return [total[id(tensor)].to(tensor.dtype) for tensor in self.parameters]

    def drop(self, x: Tensor, p: float, copies: int, dtype: torch.dtype, mask: Tensor | None) -> list[Tensor]:
        """Return `copies` dropped copies of x in `dtype`, each with its own mask."""
        if mask is None:
            return [F.dropout(x, p).to(dtype) for _ in range(copies)]
        return [(x * kept * (1 / (1 - p))).to(dtype) for kept in mask]


def thin_buffer(one: Factors) -> Tensor:
    """Return where the flat [u | U | V'] of a projection is written."""
    rows, columns = one.weight.shape
    return torch.empty(
        columns + (rows + columns) * sum(one.ranks), dtype=accumulation_dtype(one.weight), device=one.weight.device
    )
