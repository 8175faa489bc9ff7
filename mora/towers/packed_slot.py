"""Where the projections of a packed attention are adapted: the attention as a whole is replaced."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mora.config import MoraConfig
from mora.methods.factors import CommonFactors
from mora.projection.adapted import Adapted
from mora.projection.site import Site
from mora.system.hooks import share_hooks
from mora.towers.adapted import adapted_at
from mora.towers.admission import check_linear, check_packed
from mora.towers.attention import MultiheadAttention, OpenClipAttention, unsupported
from mora.towers.packed import PACKED, PackedAttention, PackedSite, PackedSlice
from mora.towers.slots import Slot, take_back


class PackedSlot(Slot):
    """Attention with packed q, k, v: `nn.MultiheadAttention` or open_clip's own `Attention`."""

    key = "in_proj_weight"

    def linear(self, target: str) -> nn.Linear | PackedSlice:
        if not isinstance(self.attention, PackedAttention):
            check_packed(self.attention, self.path)
        if reasons := unsupported(self.attention):
            raise ValueError(f"model: {self.path} cannot be adapted: {'; '.join(reasons.values())}")
        if target == "out":
            return check_linear(self.attention.out_proj, f"{self.path}.out_proj", target, packed=True)
        return PackedSlice(self.attention, PACKED.index(target))

    def replaced(self, targets: tuple[str, ...]) -> dict[str, nn.Module]:
        packed = {self.path: self.attention} if set(targets) & set(PACKED) else {}
        return packed | ({f"{self.path}.out_proj": self.attention.out_proj} if "out" in targets else {})

    def stand_in(self) -> Any:
        """The module that can hold q, k, v one by one, with the parameters of the attention that stands there."""
        original = self.attention
        return (
            MultiheadAttention(original) if isinstance(original, nn.MultiheadAttention) else OpenClipAttention(original)
        )

    def install(self, targets: tuple[str, ...], common: CommonFactors, config: MoraConfig) -> None:
        original, adapted = self.attention, self.stand_in()
        projections: dict[str, Adapted] = {}
        for target in targets:
            if target == "out":
                projection = adapted_at(original.out_proj, common, self, target, config)
                share_hooks(projection, original.out_proj)
                adapted.out_proj = projection
            else:
                projection = adapted_at(adapted.slice(target), common, self, target, config)
                setattr(adapted, target, projection)
            projections[target] = projection.train(original.training)
        setattr(self.parent, self.name, adapted)
        self.projections = projections  # only now is there something to take back

    def site(self, target: str) -> Site:
        self.linear(target)
        if not isinstance(self.attention, PackedAttention):
            setattr(self.parent, self.name, self.stand_in())
        adapted = self.attention
        name = "out_proj" if target == "out" else target
        found = getattr(adapted, name)
        if isinstance(found, Site):
            return found
        site = Site(found) if target == "out" else PackedSite(adapted.slice(target))
        if target == "out":
            share_hooks(site, found)
        setattr(adapted, name, site.train(adapted.training))
        return site

    def restore(self) -> None:
        adapted, self.projections = self.attention, {}
        if not isinstance(adapted, PackedAttention):
            return  # another adapter's slot was here before
        original = adapted.give_back()
        if isinstance(adapted.out_proj, Site):
            take_back(adapted.out_proj, original.out_proj)
        setattr(self.parent, self.name, original)

    def linear_names(self, targets: tuple[str, ...]) -> list[str]:
        return [f"{self.path}.{'out_proj' if target == 'out' else target}" for target in targets]

    @torch.no_grad()
    def split(self, targets: tuple[str, ...]) -> None:
        for target in targets:
            self.linear(target)
        adapted = self.stand_in()
        for target in targets:
            if target != "out":
                setattr(adapted, target, adapted.slice(target).copied())
        setattr(self.parent, self.name, adapted)

    @torch.no_grad()
    def unsplit(self, targets: tuple[str, ...]) -> None:
        adapted = self.attention
        for target in targets:
            if target != "out":
                adapted.slice(target).take(getattr(adapted, target))
        original = adapted.give_back()
        original.out_proj = adapted.out_proj
        setattr(self.parent, self.name, original)
