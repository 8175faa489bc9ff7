"""Attention that makes q, k, v by one `nn.Linear` [3 d, d], as timm's does: that linear is replaced, no more.

timm's EVA and BEiT hold q's and v's biases themselves and read the linear's weight, so that what stands there would
never run. Told to add the biases afterwards (`qkv_bias_separate`, their own switch), they call it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mora.config import MoraConfig
from mora.methods.factors import CommonFactors
from mora.methods.shared_input import SharedInput
from mora.projection.adapted import Adapted
from mora.projection.site import Site
from mora.system.hooks import share_hooks
from mora.towers.adapted import adapted_at
from mora.towers.admission import check_linear
from mora.towers.packed import PACKED, PackedProjections, PackedSite, PackedSlice
from mora.towers.slots import SeparateSlot, Slot, take_back

ADDS = "qkv_bias_separate"


class FusedLinear(PackedProjections):
    """Stands for an `nn.Linear` [3 d, d] that gives q, k, v side by side: same call, same result, same parameters.

    y = [q(x); k(x); v(x)], [..., 3 d] for x [..., d]; what is not adapted is projected by its rows of the weight.

    Args:
        original: the linear; its parameters are kept as they are, under their own names.
    """

    names: ClassVar[tuple[str, str]] = ("weight", "bias")
    weight: Tensor
    bias: Tensor | None

    def __init__(self, original: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = original.in_features, original.out_features
        self.weight, self.bias = original.weight, original.bias
        for name in PACKED:
            self.register_module(name, None)
        share_hooks(self, original)
        self.train(original.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., 3 d] for x [..., d]; inside `mora.disabled`, the frozen product."""
        if not self.is_on or not self.adapted():
            return F.linear(x, self.weight, self.bias)
        if self.is_kept():
            return self.project_packed(x)
        with self.sharing():
            return torch.cat([self.project_one(position, x, together=True) for position in range(3)], dim=-1)


class FusedSlot(SeparateSlot):
    """Attention with one `nn.Linear` for q, k, v and another for its output.

    Args:
        names: the path below the attention of the linear that is, or makes, each target.
    """

    def __init__(
        self, modality: str, layer: int, block: nn.Module, attention: str, path: str, names: Mapping[str, str]
    ) -> None:
        super().__init__(modality, layer, block, attention, path, names)
        self.packed: nn.Linear | None = None
        self.added: bool | None = None  # what the attention's switch was, where it has one

    def linear(self, target: str) -> nn.Linear | PackedSlice:  # type: ignore[override]
        if target not in PACKED:
            return super().linear(target)
        return PackedSlice(self.whole(target), PACKED.index(target), FusedLinear.names)

    def whole(self, target: str) -> Any:
        """The module that makes q, k, v; raises ValueError unless it is a plain linear that can be replaced."""
        holder, name, path = self.place(target)
        found = getattr(holder, name, None)
        if isinstance(found, FusedLinear):
            return found
        linear = check_linear(found, path, target, packed=True)
        if linear.out_features % 3:
            raise ValueError(f"model: {path} has {linear.out_features} rows, expected as many each of q, k and v")
        if getattr(holder, "q_bias", None) is not None and not hasattr(holder, ADDS):
            raise ValueError(
                f"model: {self.path} is a {type(holder).__name__} that reads the weight of {path} and never calls it, "
                f"expected one with the switch {ADDS}: timm 1.0.11 or newer has it"
            )
        return linear

    def replaced(self, targets: tuple[str, ...]) -> dict[str, nn.Module]:
        return {self.place(t)[2]: self.whole(t) if t in PACKED else super(FusedSlot, self).linear(t) for t in targets}

    def fuse(self, target: str) -> FusedLinear:
        """Put what can hold q, k, v one by one in the place of the linear that makes them all."""
        holder, name, _ = self.place(target)
        original = self.whole(target)
        stand_in = FusedLinear(original)
        self.packed, self.added = original, None
        if getattr(holder, "q_bias", None) is not None:
            self.added = getattr(holder, ADDS)
            setattr(holder, ADDS, True)
        setattr(holder, name, stand_in)
        return stand_in

    def part(self, target: str) -> None:
        """Put back the linear that makes q, k and v, holding the parameters as they are now."""
        holder, name, _ = self.place(target)
        assert self.packed is not None
        setattr(holder, name, take_back(getattr(holder, name), self.packed))
        if self.added is not None:
            setattr(holder, ADDS, self.added)
        self.packed = self.added = None

    def install(self, targets: tuple[str, ...], common: CommonFactors, config: MoraConfig) -> None:
        super().install(tuple(target for target in targets if target not in PACKED), common, config)
        packed = [target for target in targets if target in PACKED]
        if not packed:
            return
        stand_in, projections = self.fuse(packed[0]), {}
        for target in packed:
            projection = adapted_at(stand_in.slice(target), common, self, target, config)
            setattr(stand_in, target, projection.train(stand_in.training))
            projections[target] = projection
        found: dict[str, Adapted] = {**self.projections, **projections}
        self.projections = {target: found[target] for target in targets}

    def site(self, target: str) -> Site:
        if target not in PACKED:
            return super().site(target)
        found = self.whole(target)
        stand_in = found if isinstance(found, FusedLinear) else self.fuse(target)
        if not isinstance(site := getattr(stand_in, target), Site):
            site = PackedSite(stand_in.slice(target)).train(stand_in.training)
            setattr(stand_in, target, site)
        return site

    def restore(self) -> None:
        packed = [target for target in PACKED if target in self.projections]
        for target in packed:
            del self.projections[target]
        if self.packed is not None:
            self.part("q")
        super().restore()
        self.shared_input = None

    def watch(self, shared_input: SharedInput) -> None:
        Slot.watch(self, shared_input)  # the linear's own call is the one that q, k and v share

    def linear_names(self, targets: tuple[str, ...]) -> list[str]:
        return [f"{self.place(t)[2]}.{t}" if t in PACKED else self.place(t)[2] for t in targets]

    @torch.no_grad()
    def split(self, targets: tuple[str, ...]) -> None:
        for target in targets:
            self.linear(target)
        packed = [target for target in targets if target in PACKED]
        if packed:
            stand_in = self.fuse(packed[0])
            for target in packed:
                setattr(stand_in, target, stand_in.slice(target).copied())

    @torch.no_grad()
    def unsplit(self, targets: tuple[str, ...]) -> None:
        packed = [target for target in targets if target in PACKED]
        for target in packed:
            stand_in = self.whole(target)
            stand_in.slice(target).take(getattr(stand_in, target))
        if packed:
            self.part(packed[0])
