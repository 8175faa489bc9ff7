"""The r x r Gram matrix through which the towers meet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mora_kernels.precision import accumulation_dtype, full_precision


def gram(factor: Tensor) -> Tensor:
    """Return `factor^T factor` [r, r] of a factor [d, r], in the accumulation dtype."""
    with full_precision(factor):
        factor = factor.to(accumulation_dtype(factor))
        return factor.T @ factor


def total_gram(common: Tensor, other_common: Sequence[Tensor] | None) -> Tensor:
    """Return G, the sum of the other modalities' Gram matrices [r_c, r_c]; the identity when there are none."""
    if other_common is None:
        return torch.eye(common.shape[1], dtype=accumulation_dtype(common), device=common.device)
    total = gram(other_common[0])
    for other in other_common[1:]:
        total = total + gram(other)
    return total
