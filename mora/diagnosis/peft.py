"""The moves of LoRA's and DoRA's projections, whose start is the pretrained weight."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from mora.config import MoraConfig
from mora.diagnosis.figures import Projection
from mora.diagnosis.weights import exact, moved
from mora.runs.methods import adapted_slots


@torch.no_grad()
def peft_projections(model: nn.Module, config: MoraConfig, ranks: bool = True) -> tuple[Projection, ...]:
    """The figures of every projection that PEFT adapted, in the order of MoRA's.

    Args:
        model: a CLIP after `mora.runs.methods.adapt` with "lora" or "dora".
        config: of that call.
        ranks: compute effective ranks as well.
    """
    found = []
    for slot in adapted_slots(model, config):
        targets = config.targets_of(slot.modality)
        for target, path in zip(targets, slot.linear_names(targets), strict=True):
            layer: Any = copy.deepcopy(model.get_submodule(path))
            before = exact(layer.get_base_layer().weight)
            layer.merge()
            after = exact(layer.get_base_layer().weight)
            found.append(moved(f"{slot.modality}.{slot.layer}.{target}", slot.modality, before, after, ranks))
    return tuple(found)
