"""FSDP2: parameters that are whole only while the module they belong to runs."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn


def is_sharded(tensor: Any) -> bool:
    """Whether this process holds a part of a tensor only (DTensor)."""
    return hasattr(tensor, "device_mesh")


def is_managed(model: nn.Module) -> bool:
    """Whether `fully_shard` was applied to a model or to anything in it."""
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    return kind is not None and any(isinstance(module, kind) for module in model.modules())


def check_whole(model: nn.Module, verb: str) -> None:
    """Raise ValueError where `fully_shard` holds the parameters: it would go on with those that were taken out."""
    if is_managed(model):
        raise ValueError(
            f"{verb}: got a model that fully_shard was applied to, expected a whole one: mora.save_adapter in every "
            "process, then mora.load_adapter into a model that is not sharded"
        )


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of one that is sharded; every process has to ask."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
