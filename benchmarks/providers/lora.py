"""PEFT's LoRA and DoRA, at MoRA's targets and total rank, and their own formulas to check them by."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor, nn

ABSENT = "" if importlib.util.find_spec("peft") else "PEFT is not installed"
NAMES = {"PEFT LoRA": False, "PEFT DoRA": True}  # name -> use_dora
PACKED = "PEFT LoRA, q k v"  # all that PEFT can do with a packed q, k, v: one update of the three, without dropout


def adapt(model: nn.Module, targets: list[str], rank: int, dropout: float, dora: bool) -> nn.Module:
    """Inject adapters of one rank into the named linear layers, in place, B drawn too; the rest is frozen."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=dropout, use_dora=dora, target_modules=targets)
    return as_trained(inject_adapter_in_model(config, model))


def adapt_packed(model: nn.Module, parameters: list[str], rank: int) -> nn.Module:
    """Inject LoRA on the named packed q, k, v weights, in place; PEFT offers neither dropout nor DoRA there."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=[], target_parameters=parameters)
    return as_trained(inject_adapter_in_model(config, model))


@torch.no_grad()
def as_trained(model: nn.Module) -> nn.Module:
    """Move what PEFT starts at the identity, so that a wrong factor would show."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.02)
        if "lora_magnitude_vector" in name:
            parameter.mul_(1.1)
    return model


def formula(weight: Tensor, a: Tensor, b: Tensor, magnitude: Tensor | None = None) -> Tensor:
    """W + BA of scale 1 [out, in]; for DoRA each row is scaled to its magnitude, its norm taken as a constant.

    Sources: LoRA, arXiv 2106.09685, equation (3); DoRA, arXiv 2402.09353, equations (5) and (11).
    """
    moved = weight + b @ a
    return moved if magnitude is None else magnitude[:, None] * moved / moved.norm(dim=1, keepdim=True).detach()


def factors(layer: nn.Module) -> dict[str, Tensor]:
    """The trainable tensors of a PEFT layer, by the names of `formula`'s arguments."""
    name = layer.active_adapters[0]
    found = {"a": layer.lora_A[name].weight, "b": layer.lora_B[name].weight}
    if name in layer.lora_magnitude_vector:
        found["magnitude"] = layer.lora_magnitude_vector[name].weight
    return found


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every adapted layer of a model, by its name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
