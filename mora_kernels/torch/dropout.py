"""Dropout on a CPU from 16 random bits an element, where PyTorch draws 32 or more, one after another.

Four elements share one 64-bit draw of PyTorch's generator, so a seed gives the same mask again. p is met in steps of
2^-16, and what survives is scaled by the probability that is met: the expectation is exact.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

STEPS = 1 << 16
LOWEST = torch.iinfo(torch.int64).min
LEAST = 64 / STEPS  # below it a step is no small part of p
FEWEST = 1 << 14  # elements: of fewer PyTorch's own mask takes no longer


def survivors(shape: torch.Size, p: float) -> tuple[Tensor, float]:
    """Return a mask of `shape` on the CPU, 1 (uint8) where an element survives, and the factor of what does."""
    kept, count = round((1 - p) * STEPS), shape.numel()
    bits = torch.empty((count + 3) // 4, dtype=torch.int64).random_(LOWEST, None)
    mask = bits.view(torch.int16)[:count] < kept - STEPS // 2
    return mask.view(torch.uint8).view(shape), STEPS / kept


def masked(x: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Return x * mask * scale."""
    return mask.to(x.dtype).mul_(scale).mul_(x)


class Dropout(torch.autograd.Function):
    """x * mask * scale; one byte an element is kept for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        mask, ctx.scale = survivors(x.shape, p)
        ctx.save_for_backward(mask)
        return masked(x, mask, ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return masked(grad, mask, ctx.scale), None


def dropout(x: Tensor, p: float) -> Tensor:
    """Return x with every element dropped with probability p, the others scaled by 1 / (1 - p)."""
    if x.device.type != "cpu" or x.numel() < FEWEST or not LEAST <= p <= 1 - LEAST:
        return F.dropout(x, p)
    return Dropout.apply(x, p)
