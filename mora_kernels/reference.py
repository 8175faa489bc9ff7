"""The specification: MoRA's equations in plain PyTorch, one line each, never optimised.

Every other backend is measured against this file. All arithmetic happens in the accumulation dtype (float32, or
float64 for float64 weights), under disabled autocast, and is rounded once, when the result is returned. Gradients are
those of autograd. Equation numbers are those of docs/design.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mora_kernels.factors import Factors
from mora_kernels.numerics import NORM_FLOOR, accumulation_dtype, full_precision


def gram(factor: Tensor) -> Tensor:
    """Return `factor^T factor` [r, r] of a factor [d, r], in the accumulation dtype."""
    with full_precision(factor):
        factor = factor.to(accumulation_dtype(factor))
        return factor.T @ factor


def total_gram(common: Tensor, other_common: Sequence[Tensor] | None, scale: float = 1.0) -> Tensor:
    """Return G = scale * sum over the other modalities of S^T S [r_c, r_c]; the identity without `other_common`."""
    if other_common is None:
        return torch.eye(common.shape[1], dtype=accumulation_dtype(common), device=common.device)
    return scale * sum((gram(other) for other in other_common[1:]), gram(other_common[0]))


def direction(matrix: Tensor) -> Tensor:
    """Return `matrix` with every column divided by its L2 norm, the norm clamped from below at 1e-5."""
    return matrix / torch.linalg.vector_norm(matrix, dim=0).clamp(min=NORM_FLOOR)


def effective_weight(one: Factors) -> Tensor:
    """Return equation (1), `m_c dir(W + alpha S_out G S^T) + m_s dir(W + alpha (A B)^T)` [out, in] (S_out: S)."""
    with full_precision(one.weight):
        dtype = accumulation_dtype(one.weight)
        base, shared, shared_out = one.weight.detach().to(dtype), one.common.to(dtype), one.out_side.to(dtype)
        common_update = shared_out @ total_gram(one.common, one.other_common, one.gram_scale).to(dtype) @ shared.T
        result = one.common_magnitude.to(dtype) * direction(base + one.alpha * common_update)
        if one.specific_a is not None and one.specific_b is not None and one.specific_magnitude is not None:
            specific_update = (one.specific_a.to(dtype) @ one.specific_b.to(dtype)).T
            result = result + one.specific_magnitude.to(dtype) * direction(base + one.alpha * specific_update)
        return result.to(one.weight.dtype)


def mora_linear(x: Tensor, bias: Tensor | None, one: Factors, dropout_p: float = 0.0, training: bool = True) -> Tensor:
    """Return equation (2), `dropout(x) W_eff^T + b` [..., out], in `x`'s dtype."""
    effective = effective_weight(one)
    with full_precision(x):
        bias = None if bias is None else bias.to(x.dtype)
        return F.linear(F.dropout(x, dropout_p, training), effective.to(x.dtype), bias)
