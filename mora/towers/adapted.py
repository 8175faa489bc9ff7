"""Which module adapts a projection: by the method, on a parameter of its own or a slice, alone or beside others."""

from __future__ import annotations

from typing import Any

from mora.bases import base_of
from mora.config import MoraConfig
from mora.lora.linear import HeldLoraLinear, LoraGuest, LoraLinear
from mora.methods.factors import CommonFactors
from mora.methods.linear import HeldMoraLinear, MoraGuest, MoraLinear
from mora.projection.adapted import Adapted
from mora.projection.guest import Guest
from mora.projection.site import Site
from mora.towers.packed import PackedAdapted, PackedSite, PackedSlice


class PackedGuest(Guest, PackedAdapted):
    """The same, at a site at which other adapters compute as well."""

    def hold(self, linear: Any) -> None:
        """Remember the site, and where its weight is."""
        super().hold(linear)
        self._slice = linear._slice


class PackedMoraLinear(PackedAdapted, MoraLinear):
    """A MoraLinear on a slice."""


class PackedMoraGuest(PackedGuest, MoraGuest):
    """The same, at a site at which other adapters compute as well."""


class PackedLoraLinear(PackedAdapted, LoraLinear):
    """A LoraLinear on a slice."""


class PackedLoraGuest(PackedGuest, LoraGuest):
    """The same, at a site at which other adapters compute as well."""


def adapted_at(linear: Any, common: CommonFactors, slot: Any, target: str, config: MoraConfig) -> Adapted:
    """The adapted projection of a target, by the method of its tower; a guest where `linear` is a site.

    Args:
        linear: the frozen projection, an `nn.Linear`, a `PackedSlice` or a `Site`.
        common: of the pair of blocks.
        slot: of the block: its modality and layer.
        config: of that block.
    """
    packed, guest = isinstance(linear, (PackedSlice, PackedSite)), isinstance(linear, Site)
    held = not packed and not guest and base_of(linear) is not None
    modality, mode = slot.modality, config.mode(slot.modality)
    if mode == "mora":
        kind = HeldMoraLinear if held else ((MoraLinear, MoraGuest), (PackedMoraLinear, PackedMoraGuest))[packed][guest]
        return kind(linear, common, modality, config)
    lora = HeldLoraLinear if held else ((LoraLinear, LoraGuest), (PackedLoraLinear, PackedLoraGuest))[packed][guest]
    rank, scale = config.rank_of(modality, slot.layer, target), config.scale_of(modality, slot.layer, target)
    return lora(linear, rank, scale, mode == "dora", config.dropout, modality, config.backend)
