"""`build` for all projections of a group in plain PyTorch: what the fused engine does, one projection after another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mora_kernels.coupling import total_gram
from mora_kernels.precision import accumulation_dtype
from mora_kernels.projection import Factors
from mora_kernels.torch.linear import linear_gradients
from mora_kernels.torch.weight import compose, factor_gradients, thin_factors


class Engine:
    """The values of a group in one compute dtype: per projection the flat [u | U | V'] and W_eff."""

    def __init__(self, factors: Sequence[Factors], dtype: torch.dtype, parameters: Sequence[Tensor]) -> None:
        self.dtype, self.parameters = dtype, list(parameters)
        self.thin: list[Tensor] = []
        self.effective: list[Tensor] = []

    def build(self, factors: Sequence[Factors]) -> None:
        """Compute `thin` and `effective` from the factors' present values; W_eff stays where it was."""
        self.factors, self.norms, self.grams = list(factors), [], []
        self.thin, effective = [], []
        for place, one in enumerate(factors):
            gram = total_gram(one.common, one.other_common).to(accumulation_dtype(one.weight))
            u, left, right, norms = thin_factors(one.weight, one.common, gram, *one[3:7], one.alpha)
            result = compose(one.weight, u, left, right, self.dtype)
            kept = one.buffer if one.buffer is not None else self.effective[place] if self.effective else None
            effective.append(result if kept is None else kept.copy_(result))
            self.thin.append(torch.cat([u, left.flatten(), right.flatten()]))
            self.norms.append(norms)
            self.grams.append(gram)
        self.effective = effective

    def parts(self, index: int, flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return u [d], U [d, r], V' [d, r] of a flat [u | U | V']."""
        size = self.factors[index].weight.shape[0]
        left, right = flat[size:].view(2, size, -1)
        return flat[:size], left, right

    def linear_backward(
        self, index: int, grad: Tensor, x: Tensor | None, needs_x: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of x [M, d] and of `thin[index]` (None where x is None) from dY [M, d]."""
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
            results = factor_gradients(
                one.weight, one.common, self.grams[index], *one[3:7], self.norms[index],
                self.parts(index, grad), one.alpha,
            )  # fmt: skip
            common, gram, *rest = results
            own = (one.common, *one[3:7])
            for tensor, value in zip(own, (common, *rest), strict=True):
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
