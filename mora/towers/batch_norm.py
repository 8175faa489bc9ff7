"""Frozen batch norms keep to their statistics: in training mode as well they compute what the pretrained model does.

Else a batch would change what frozen layers compute and the statistics themselves, which an adapter file does not hold.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mora.system.hooks import library_hook


@library_hook
def hold(module: nn.Module, _: Any) -> None:
    """Before a batch norm runs: in eval mode, if none of its parameters is trained."""
    if module.training and not any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
        module.eval()


def hold_statistics(model: nn.Module) -> None:
    """Let the frozen batch norms of `model` keep to their statistics."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            module.register_forward_pre_hook(hold)


def release_statistics(model: nn.Module) -> None:
    """Let every batch norm of `model` do again what its mode says."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for key in [key for key, hook in module._forward_pre_hooks.items() if hook is hold]:
                del module._forward_pre_hooks[key]
