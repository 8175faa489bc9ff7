"""One attention block where projections are adapted, and how they are put in and taken out again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mora.attention import PACKED, MultiheadAttention, OpenClipAttention, PackedMoraLinear, PackedSlice, unsupported
from mora.config import MoraConfig
from mora.factors import CommonFactors
from mora.linear import MoraLinear


class Site(ABC):
    """The attention module of one block of one tower; `projections` holds what is adapted there, by target.

    Args:
        modality: "image" or "text".
        layer: index of the block in its tower.
        parent: the module that holds the attention, as attribute `name`.
        path: dotted path of the attention in the model, for messages.
    """

    def __init__(self, modality: str, layer: int, parent: nn.Module, name: str, path: str) -> None:
        self.modality, self.layer = modality, layer
        self.parent, self.name, self.path = parent, name, path
        self.projections: dict[str, MoraLinear] = {}

    @property
    def attention(self) -> Any:
        """The attention module that stands there now."""
        return getattr(self.parent, self.name)

    @abstractmethod
    def linear(self, target: str) -> nn.Linear | PackedSlice:
        """The frozen projection of a target; raises ValueError when this block has none."""

    @abstractmethod
    def install(self, targets: tuple[str, ...], common: CommonFactors, config: MoraConfig) -> None:
        """Put a MoraLinear in the place of every target."""

    @abstractmethod
    def restore(self) -> None:
        """Put the original modules back, holding the parameters as they are now."""

    @abstractmethod
    def set_enabled(self, enabled: bool) -> None:
        """Switch between the adapted and the pretrained computation."""

    @abstractmethod
    def linear_names(self, targets: tuple[str, ...]) -> list[str]:
        """Dotted paths in the model of the targets' `nn.Linear`s, after `split`."""

    @abstractmethod
    def split(self, targets: tuple[str, ...]) -> None:
        """See to it that every target is an `nn.Linear` of its own, for libraries that adapt whole modules."""

    @abstractmethod
    def unsplit(self, targets: tuple[str, ...]) -> None:
        """The original module back, with the weights that the split `nn.Linear`s hold now."""

    def weight(self, target: str) -> Tensor:
        """The frozen weight [d, d] of a target, adapted or not; raises ValueError when this block has none."""
        adapted = self.projections.get(target)
        return (self.linear(target) if adapted is None else adapted).weight

    def width(self, targets: tuple[str, ...]) -> int:
        """d of the block's projections; raises ValueError when a target is not square or widths differ."""
        widths = set()
        for target in targets:
            rows, columns = self.weight(target).shape
            if rows != columns:
                raise ValueError(
                    f"targets: {self.path} {target!r} has a {rows} x {columns} weight, expected a square one: the "
                    "common update S G S^T is square"
                )
            widths.add(columns)
        if len(widths) > 1:
            raise ValueError(f"targets: widths {sorted(widths)} differ within {self.path}, expected one width")
        return widths.pop()

    def named_projections(self) -> Iterator[tuple[str, MoraLinear]]:
        """(name, module) of what is adapted here; names read "image.11.v" in every family."""
        for target, projection in self.projections.items():
            yield f"{self.modality}.{self.layer}.{target}", projection


class SeparateSite(Site):
    """Attention with one `nn.Linear` per projection: `q_proj`, `k_proj`, `v_proj`, `out_proj`."""

    def __init__(self, modality: str, layer: int, parent: nn.Module, name: str, path: str) -> None:
        super().__init__(modality, layer, parent, name, path)
        self.replaced: dict[str, nn.Linear] = {}

    def linear(self, target: str) -> nn.Linear:
        linear = getattr(self.attention, f"{target}_proj", None)
        if not isinstance(linear, nn.Linear):
            raise ValueError(
                f"targets: {target!r} looked for an nn.Linear at {self.path}.{target}_proj, "
                f"found {type(linear).__name__}"
            )
        return linear

    def install(self, targets: tuple[str, ...], common: CommonFactors, config: MoraConfig) -> None:
        for target in targets:
            linear = self.linear(target)
            projection = MoraLinear(linear, common, self.modality, config).train(linear.training)
            self.replaced[target], self.projections[target] = linear, projection
            setattr(self.attention, f"{target}_proj", projection)

    def restore(self) -> None:
        for target, linear in self.replaced.items():
            setattr(self.attention, f"{target}_proj", take_back(self.projections[target], linear))
        self.replaced, self.projections = {}, {}

    def set_enabled(self, enabled: bool) -> None:
        for projection in self.projections.values():
            projection.enabled = enabled

    def linear_names(self, targets: tuple[str, ...]) -> list[str]:
        return [f"{self.path}.{target}_proj" for target in targets]

    def split(self, targets: tuple[str, ...]) -> None:
        for target in targets:
            self.linear(target)

    def unsplit(self, targets: tuple[str, ...]) -> None:
        """Nothing to do: the projections were never packed."""


class PackedSite(Site):
    """Attention with packed q, k, v: `nn.MultiheadAttention` or open_clip's own `Attention`."""

    def linear(self, target: str) -> nn.Linear | PackedSlice:
        if reasons := unsupported(self.attention):
            raise ValueError(f"model: {self.path} cannot be adapted: {'; '.join(reasons.values())}")
        return self.attention.out_proj if target == "out" else PackedSlice(self.attention, PACKED.index(target))

    def stand_in(self) -> Any:
        """The module that can hold q, k, v one by one, with the parameters of the attention that stands there."""
        original = self.attention
        return (
            MultiheadAttention(original) if isinstance(original, nn.MultiheadAttention) else OpenClipAttention(original)
        )

    def install(self, targets: tuple[str, ...], common: CommonFactors, config: MoraConfig) -> None:
        original, adapted = self.attention, self.stand_in()
        for target in targets:
            if target == "out":
                projection: MoraLinear = MoraLinear(original.out_proj, common, self.modality, config)
                adapted.out_proj = projection
            else:
                part = PackedSlice(adapted, PACKED.index(target))
                projection = PackedMoraLinear(part, common, self.modality, config)
                setattr(adapted, target, projection)
            self.projections[target] = projection.train(original.training)
        setattr(self.parent, self.name, adapted)

    def restore(self) -> None:
        adapted = self.attention
        original = adapted.give_back()
        if "out" in self.projections:
            take_back(self.projections["out"], original.out_proj)
        setattr(self.parent, self.name, original)
        self.projections = {}

    def set_enabled(self, enabled: bool) -> None:
        self.attention.enabled = enabled
        for projection in self.projections.values():
            projection.enabled = enabled

    def linear_names(self, targets: tuple[str, ...]) -> list[str]:
        return [f"{self.path}.{'out_proj' if target == 'out' else target}" for target in targets]

    @torch.no_grad()
    def split(self, targets: tuple[str, ...]) -> None:
        parts = {target: self.linear(target) for target in targets if target != "out"}
        adapted = self.stand_in()
        for target, part in parts.items():
            rows, columns = part.weight.shape
            linear = nn.Linear(columns, rows, part.bias is not None, part.weight.device, part.weight.dtype)
            linear.requires_grad_(False)
            linear.weight.copy_(part.weight)
            if part.bias is not None:
                linear.bias.copy_(part.bias)
            setattr(adapted, target, linear)
        setattr(self.parent, self.name, adapted)

    @torch.no_grad()
    def unsplit(self, targets: tuple[str, ...]) -> None:
        adapted = self.attention
        for target in targets:
            if target != "out":
                linear, packed = getattr(adapted, target), PackedSlice(adapted, PACKED.index(target))
                packed.weight.copy_(linear.weight)
                if packed.bias is not None:
                    packed.bias.copy_(linear.bias)
        original = adapted.give_back()
        original.out_proj = adapted.out_proj
        setattr(self.parent, self.name, original)


def take_back(projection: MoraLinear, linear: Any) -> Any:
    """Return `linear` holding the parameters and the mode of the MoraLinear that stood for it."""
    linear.weight, linear.bias = projection.weight, projection.bias
    return linear.train(projection.training)
