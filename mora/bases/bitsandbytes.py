"""bitsandbytes: `Linear4bit` (nf4 and fp4, its statistics compressed or not) and `Linear8bitLt`."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from mora.bases import accelerate
from mora.bases.base import Base

SUPPORTED = "Linear4bit (nf4, fp4) and Linear8bitLt(has_fp16_weights=False), quantised"
FOUR, EIGHT = ("Linear4bit", "LinearNF4", "LinearFP4"), ("Linear8bitLt",)


def base_of(linear: Any, path: str) -> Base | None:
    """The base of a linear of bitsandbytes; None for others."""
    kind = type(linear)
    if kind.__module__.partition(".")[0] != "bitsandbytes":
        return None
    found = FourBit if kind.__name__ in FOUR else EightBit if kind.__name__ in EIGHT else None
    why = "which is another class" if found is None else found.refused(linear)
    why = why or ("which is offloaded as well" if accelerate.offloads(linear) else "")
    if found is None or why:
        raise ValueError(f"model: {path} is a {kind.__module__}.{kind.__name__}, {why}; expected {SUPPORTED}")
    return found(linear)


class FourBit(Base):
    """`Linear4bit`: blocks of 4-bit codes with a scale each."""

    @staticmethod
    def refused(linear: Any) -> str:
        """Why it cannot be adapted; "" if it can."""
        state = getattr(linear.weight, "quant_state", None) or getattr(linear, "quant_state", None)
        return "" if state is not None else "which is not quantised yet: move the model to its device first"

    @property
    def state(self) -> Any:
        """bitsandbytes' `QuantState`."""
        return getattr(self.linear.weight, "quant_state", None) or self.linear.quant_state

    @property
    def label(self) -> str:
        return f"bitsandbytes {self.state.quant_type}"

    @property
    def shape(self) -> tuple[int, int]:
        return self.linear.out_features, self.linear.in_features

    @property
    def own_dtype(self) -> torch.dtype:
        return self.state.dtype

    def dequantised(self) -> Tensor:
        from bitsandbytes import functional

        data, state = self.linear.weight.data, self.state
        if getattr(state, "packing_format_for_cpu", False):  # in eval, on a CPU with avx512_bf16
            data, state = functional._convert_weight_packed_for_cpu_inverse(data.clone(), copy.deepcopy(state))
        return functional.dequantize_4bit(data, state)

    def sources(self) -> list[Tensor]:
        state = self.state
        nested = [] if state.state2 is None else [state.offset, state.state2.absmax, state.state2.code]
        return [self.linear.weight, state.absmax, state.code, *nested]


class EightBit(Base):
    """`Linear8bitLt`: 8-bit codes with a scale for each row."""

    @staticmethod
    def refused(linear: Any) -> str:
        """Why it cannot be adapted; "" if it can."""
        if linear.state.has_fp16_weights:
            return "whose weights are not quantised (has_fp16_weights=True)"
        quantised = linear.weight.dtype == torch.int8 and EightBit(linear).scale is not None
        return "" if quantised else "which is not quantised yet: move the model to its device first"

    @property
    def scale(self) -> Tensor:
        """The largest value of each row [out]; it moves to the state with the first forward call."""
        state = self.linear.state.SCB
        return self.linear.weight.SCB if state is None else state

    @property
    def label(self) -> str:
        return "bitsandbytes int8"

    @property
    def shape(self) -> tuple[int, int]:
        return self.linear.out_features, self.linear.in_features

    @property
    def own_dtype(self) -> torch.dtype:
        return torch.float32

    def dequantised(self) -> Tensor:
        from bitsandbytes import functional

        return functional.int8_vectorwise_dequant(self.linear.weight.data, self.scale.to(self.device, torch.float32))

    def sources(self) -> list[Tensor]:
        return [self.linear.weight, self.scale]
