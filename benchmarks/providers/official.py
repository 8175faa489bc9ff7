"""The official sequence of operations in eager PyTorch, written from equations (1) and (2): the baseline to beat.

Operation for operation what the authors' layer does at every forward pass: two chains of low-rank products to d x d
updates, two column norms, two clamps, two divisions, a blend, dropout on the input, one linear; autograd for the rest.
`benchmarks/test_official.py` holds it against the authors' own tensors.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mora.methods.linear import MoraLinear


def official_weight(
    weight: Tensor,
    common: Tensor,
    other_common: list[Tensor],
    specific_a: Tensor,
    specific_b: Tensor,
    common_magnitude: Tensor,
    specific_magnitude: Tensor,
    alpha: float,
) -> Tensor:
    """W_eff [d, d] of equation (1), in the dtype of its inputs, nothing fused, nothing cached."""
    gram = other_common[0].T @ other_common[0]
    common_update = common @ gram @ common.T
    specific_update = specific_a @ specific_b
    moved_common = weight + alpha * common_update.T
    moved_specific = weight + alpha * specific_update.T
    common_direction = moved_common / torch.clamp(moved_common.norm(p=2, dim=0, keepdim=True), min=1e-5)
    specific_direction = moved_specific / torch.clamp(moved_specific.norm(p=2, dim=0, keepdim=True), min=1e-5)
    return common_magnitude * common_direction + specific_magnitude * specific_direction


def official_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, *factors: Any, dropout_p: float = 0.0, training: bool = True
) -> Tensor:
    """y = dropout(x) W_eff^T + b [..., d]; `factors` are those of `official_weight` after `weight`."""
    return F.linear(F.dropout(x, dropout_p, training), official_weight(weight, *factors), bias)


def make_official(model: nn.Module) -> nn.Module:
    """Let every adapted projection of a patched model compute the official way, in place; return the model."""

    def forward(self: MoraLinear, x: Tensor) -> Tensor:
        return official_linear(
            x, self.weight, self.bias, *self.factors(), self.alpha, dropout_p=self.dropout, training=self.training
        )

    for module in model.modules():
        if isinstance(module, MoraLinear):
            module.forward = forward.__get__(module)  # type: ignore[method-assign]
    return model
