"""The start of LoRA and DoRA: A drawn, B zero, magnitudes the row norms of the weight it stands on."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from mora.projection.loaded import follow_weight
from mora_kernels.numerics import accumulation_dtype


def row_norms(weight: Tensor) -> Tensor:
    """|W[i, :]| [out] of a weight, in the dtype of its factors."""
    return torch.linalg.vector_norm(weight.detach().to(accumulation_dtype(weight)), dim=1)


@torch.no_grad()
def draw(a: Tensor) -> None:
    """Draw A [r, in] as `nn.Linear` draws its weight, in place: uniform within 1 / sqrt(in)."""
    if not a.is_meta:
        bound = 1 / math.sqrt(a.shape[1])
        a.uniform_(-bound, bound)  # not by nn.init, which other libraries take away for a while


def materialise(projection: Any) -> None:
    """Give parameters on the meta device memory beside the weight, and their start."""
    for name in projection.kinds:
        parameter = getattr(projection, name)
        if parameter is not None:
            empty = torch.zeros_like(parameter, device=projection.outline.device)
            setattr(projection, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
    draw(projection.lora_a)
    projection.start = None


@torch.no_grad()
def settle(projection: Any) -> None:
    """Set DoRA's magnitude as `patch` does, from the weight that is there now."""
    if projection.magnitude is not None:
        norm = row_norms(projection.weight)
        projection.magnitude.copy_(norm)
        projection.start = norm.cpu()


@torch.no_grad()
def follow(projection: Any, loaded: bool) -> None:
    """After weights were loaded: an untouched magnitude starts anew from them, a trained one says that it does not.

    `loaded` says that the adapter's own tensors came with the weights, and so belong to them.
    """
    if projection.outline.is_meta:
        return
    if projection.lora_a.is_meta:
        materialise(projection)
    if projection.magnitude is None:
        return
    follow_weight(projection, loaded, row_norms, untouched)


def untouched(projection: Any) -> bool:
    """Whether nothing was trained or loaded into a projection since its start, whatever dtypes it passed."""
    magnitude = projection.magnitude.cpu().to(projection.start.dtype)
    return not bool(projection.lora_b.any()) and torch.allclose(magnitude, projection.start, rtol=1e-2, atol=0)
