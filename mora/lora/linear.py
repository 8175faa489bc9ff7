"""LoraLinear, LoRA or DoRA where an `nn.Linear` stood, by PEFT's formulas."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mora.lora.group import LoraGroup
from mora.lora.start import draw, follow, row_norms, settle
from mora.projection.adapted import Adapted
from mora.projection.guest import Guest
from mora.projection.site import HeldSite
from mora_kernels.lora import lora_weight
from mora_kernels.numerics import accumulation_dtype


class LoraLinear(Adapted):
    """y = W x + b + s B A dropout(x), or DoRA's g (W + s B A), called like the frozen `nn.Linear` it stands for.

    Equations (5) and (6). A [r, in] is drawn as PEFT does (Kaiming, uniform), B [out, r] is zero, DoRA's m [out] the
    norms of W's rows: the patched model starts as the pretrained one.

    Args:
        linear: the projection to adapt: weight [out, in] and bias [out] or None, kept as they are and frozen.
        rank: r.
        scale: s, `lora_alpha / r` in PEFT.
        dora: whether rows have a magnitude.
        dropout: probability of dropping an input element of the update, and of that alone.
        modality: of the tower.
        backend: "reference" computes the formula as it stands; else W_eff is built where nothing needs a gradient.
    """

    kinds: ClassVar[tuple[str, ...]] = ("lora_a", "lora_b", "magnitude")
    lora_a: nn.Parameter
    lora_b: nn.Parameter
    magnitude: nn.Parameter | None

    def __init__(
        self,
        linear: Any,
        rank: int,
        scale: float,
        dora: bool = False,
        dropout: float = 0.0,
        modality: str = "",
        backend: str = "auto",
    ) -> None:
        super().__init__(linear)
        self.rank, self.alpha, self.dropout = rank, scale, float(dropout)
        self.modality, self.backend = modality, backend
        self.join(LoraGroup([self]), 0)
        (rows, size), outline = self.outline.shape, self.outline
        own = torch.zeros((), dtype=accumulation_dtype(outline), device=outline.device)
        self.lora_a = nn.Parameter(own.new_empty(rank, size))
        self.lora_b = nn.Parameter(own.new_zeros(rows, rank))
        draw(self.lora_a)
        self.start: Tensor | None = None
        if not dora:
            self.register_parameter("magnitude", None)
            return
        norm = row_norms(self.weight)
        self.start = None if norm.is_meta else norm.cpu()
        self.magnitude = nn.Parameter(norm.clone())

    def factors(self) -> tuple[Tensor, Tensor, float, Tensor | None]:
        """A, B, s and m or None."""
        if self.magnitude is not None and self.start is None and not self.outline.is_meta:
            settle(self)
        return self.lora_a, self.lora_b, self.alpha, self.magnitude

    def trains(self) -> bool:
        """Whether a tensor of this projection requires grad."""
        own = (self.lora_a, self.lora_b, self.magnitude, self.outline, self.bias)
        return any(tensor is not None and tensor.requires_grad for tensor in own)

    @property
    def builds(self) -> bool:
        """Whether W_eff is built here for a product of its own: in half precision it would lose small updates."""
        if self.backend == "reference" or torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
            return False
        wide = self.base is None and self.weight.dtype in (torch.float32, torch.float64)
        return wide and not torch.is_autocast_enabled(self.weight.device.type)

    def effective_weight(self, weight: Tensor | None = None) -> Tensor:
        """W_eff [out, in] in the dtype of the weight: what `merge` writes."""
        return lora_weight(self.weight if weight is None else weight, *self.factors())

    def settle(self) -> None:
        settle(self)

    def follow(self, loaded: bool) -> None:
        follow(self, loaded)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """As in `nn.Module`; memory that is new (`to_empty`) gets the start of an adapter."""
        empty = self.lora_a.is_meta
        super()._apply(fn, recurse)
        if empty and not self.lora_a.is_meta:
            draw(self.lora_a)
            with torch.no_grad():
                self.lora_b.zero_()
            self.start = None
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """As in `nn.Module`; without tensors of its own, an untouched magnitude follows the loaded weights."""
        own = state_dict.get(f"{prefix}lora_a")
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.follow(loaded=own is not None and own is not self.lora_a)

    def path(self) -> tuple[str, str]:
        """(backend, reason) of what computes this projection."""
        if self.backend == "reference":
            return "reference", "the formula as it stands"
        return "torch", "LoRA and DoRA are products of the library of the device"

    def extra_repr(self) -> str:
        method = "lora" if self.magnitude is None else "dora"
        return (
            f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self.modality}, {method}, "
            f"rank={self.rank}, scale={self.alpha:g}, dropout={self.dropout}"
        )


class HeldLoraLinear(HeldSite, LoraLinear):
    """A LoraLinear on weights that are quantised, or elsewhere between two calls."""


class LoraGuest(Guest, LoraLinear):
    """A LoraLinear whose frozen weight belongs to a site at which other adapters compute as well."""
