"""LoRA and DoRA, equations (5) and (6): an update of low rank, and one with a magnitude for every row of the weight."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mora_kernels.numerics import accumulation_dtype, full_precision


def row_scale(weight: Tensor, a: Tensor, b: Tensor, scale: float, magnitude: Tensor) -> Tensor:
    """Return g = m / |W + s B A| [out], the norms over rows, in the dtype of m; only m gets a gradient.

    A row of norm 0 counts as one of the smallest norm that is not: g is finite.
    """
    with torch.no_grad(), full_precision(weight):
        wide = magnitude.dtype
        norm = torch.linalg.vector_norm(torch.addmm(weight.to(wide), b.to(wide), a.to(wide), alpha=scale), dim=1)
        norm = norm.clamp_min(torch.finfo(wide).tiny)
    return magnitude / norm


@torch.no_grad()
def lora_weight(weight: Tensor, a: Tensor, b: Tensor, scale: float, magnitude: Tensor | None = None) -> Tensor:
    """Return W + s B A [out, in], or g (W + s B A) with a magnitude, computed in float32 and rounded once to W's dtype.

    Args:
        weight: W [out, in].
        a: A [r, in].
        b: B [out, r].
        scale: s.
        magnitude: m [out] of DoRA.
    """
    wide = accumulation_dtype(weight)
    with full_precision(weight):
        total = torch.addmm(weight.to(wide), b.to(wide), a.to(wide), alpha=scale)
        if magnitude is not None:
            norm = torch.linalg.vector_norm(total, dim=1).clamp_min(torch.finfo(wide).tiny)
            total *= (magnitude.to(wide) / norm)[:, None]
        return total.to(weight.dtype)


def lora_linear(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    magnitude: Tensor | None = None,
    dropout_p: float = 0.0,
    training: bool = True,
    frozen: Tensor | None = None,
) -> Tensor:
    """Return equation (5), or (6) with a magnitude, [..., out] for x [..., in] by thin products, in the frozen dtype.

    The update is computed in the dtype of its factors, float32 beside half-precision weights, and rounded with the sum.
    Gradients flow to x, A, B and m; the norm in g counts as a constant. `frozen` is W x + b where others compute
    it; LoRA needs no weight then.
    """
    dropped = F.dropout(x, dropout_p, training) if training and dropout_p > 0 else x
    update = F.linear(F.linear(dropped.to(a.dtype), a) * scale, b)
    if magnitude is None:
        if frozen is None:
            assert weight is not None
            frozen = F.linear(x, weight, bias)
        return (frozen + update).to(frozen.dtype)
    assert weight is not None
    g = row_scale(weight, a, b, scale, magnitude)
    if dropped is x:
        frozen = F.linear(x, weight)
        total = g * (frozen + update)
        return (total if bias is None else total + bias).to(frozen.dtype)
    frozen = F.linear(x, weight, bias)
    return (frozen + (g - 1) * F.linear(dropped, weight) + g * update).to(frozen.dtype)
