"""torchao's weight-only int8 and float8: a plain `nn.Linear` whose weight is a tensor subclass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mora.bases import accelerate
from mora.bases.base import Base

SUPPORTED = "Int8WeightOnlyConfig or Float8WeightOnlyConfig"
KINDS = {"Int8Tensor": "int8", "Float8Tensor": "float8"}
ACTIVATIONS = ("act_quant_kwargs", "act_quant_scale", "act_pre_scale")


def base_of(linear: Any, path: str) -> Base | None:
    """The base of a linear with a weight of torchao's; None for others."""
    weight = getattr(linear, "_parameters", {}).get("weight")
    kind = type(weight)
    if not isinstance(linear, torch.nn.Linear) or kind.__module__.partition(".")[0] != "torchao":
        return None
    why = "which is another kind" if kind.__name__ not in KINDS else ""
    if any(getattr(weight, name, None) is not None for name in ACTIVATIONS):
        why = "which quantises what it multiplies as well"
    if accelerate.offloads(linear):
        why = "which is offloaded as well"
    if why:
        raise ValueError(f"model: {path}.weight is a {kind.__module__}.{kind.__name__}, {why}; expected {SUPPORTED}")
    return Subclass(linear)


class Subclass(Base):
    """Codes with a scale for each row, or for the whole, in one tensor that says it is floating-point."""

    @property
    def label(self) -> str:
        return f"torchao {KINDS[type(self.linear.weight).__name__]}"

    def dequantised(self) -> Tensor:
        return self.linear.weight.dequantize()

    def sources(self) -> list[Tensor]:
        weight = self.linear.weight
        return [part for name in weight.__tensor_flatten__()[0] if (part := getattr(weight, name)) is not None]
