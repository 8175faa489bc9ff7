"""A block with its MLP: what `targets=("q", "fc1")` asks for stands in two places of one block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from mora.config import MoraConfig
from mora.fields.names import MLP
from mora.methods.factors import CommonFactors
from mora.methods.shared_input import SharedInput
from mora.projection.adapted import Adapted
from mora.projection.site import Site
from mora.towers.layouts import Separate
from mora.towers.packed import PackedSlice
from mora.towers.slots import Slot
from mora.towers.usual import usual_mlp


class BlockSlot(Slot):
    """The attention and the MLP of one block as one slot: every target is looked for where it is.

    Args:
        attention: the slot of the block's attention.
        mlp: the slot of its MLP, "fc1" and "fc2".
    """

    def __init__(self, attention: Slot, mlp: Slot) -> None:
        self.parts = attention, mlp
        self.modality, self.layer, self.block = attention.modality, attention.layer, attention.block
        self.parent, self.name, self.path = attention.parent, attention.name, attention.path
        self.block_path = attention.block_path
        self.projections: dict[str, Adapted] = {}
        self.shared_input: SharedInput | None = None

    @property
    def held(self) -> Sequence[nn.Module]:
        return list(dict.fromkeys(module for part in self.parts for module in part.held))

    @property
    def paths(self) -> list[str]:
        return list(dict.fromkeys(path for part in self.parts for path in part.paths))

    def holds(self, target: str) -> bool:
        return any(part.holds(target) for part in self.parts)

    def part(self, target: str) -> Slot:
        """Where a target is, or would be."""
        return self.parts[target in MLP]

    def divided(self, targets: tuple[str, ...]) -> Iterator[tuple[Slot, tuple[str, ...]]]:
        """(part, its targets) of the parts that have some."""
        for part in self.parts:
            if own := tuple(target for target in targets if self.part(target) is part):
                yield part, own

    def linear(self, target: str) -> nn.Linear | PackedSlice:
        return self.part(target).linear(target)

    def replaced(self, targets: tuple[str, ...]) -> dict[str, nn.Module]:
        return {path: module for part, own in self.divided(targets) for path, module in part.replaced(own).items()}

    def install(self, targets: tuple[str, ...], common: CommonFactors, config: MoraConfig) -> None:
        for part, own in self.divided(targets):
            part.install(own, common, config)
            self.projections.update(part.projections)

    def site(self, target: str) -> Site:
        return self.part(target).site(target)

    def seat(self, target: str, site: Site, common: CommonFactors, config: MoraConfig) -> Adapted:
        self.projections[target] = projection = self.part(target).seat(target, site, common, config)
        return projection

    def let_go(self) -> None:
        super().let_go()
        for part in self.parts:
            part.let_go()

    def restore(self) -> None:
        for part in reversed(self.parts):
            if part.projections:
                part.restore()
        self.projections, self.shared_input = {}, None

    def swap(self, target: str, linear: nn.Module) -> None:
        self.part(target).swap(target, linear)

    def watch(self, shared_input: SharedInput) -> None:
        super().watch(shared_input)
        self.parts[0].watch(shared_input)

    def linear_names(self, targets: tuple[str, ...]) -> list[str]:
        return [name for part, own in self.divided(targets) for name in part.linear_names(own)]

    def split(self, targets: tuple[str, ...]) -> None:
        for part, own in self.divided(targets):
            part.split(own)

    def unsplit(self, targets: tuple[str, ...]) -> None:
        for part, own in self.divided(targets):
            part.unsplit(own)


def whole(slot: Slot, targets: tuple[str, ...]) -> Slot:
    """The slot of a block that holds every target: with its MLP, found by the usual names, where that is asked for.

    Raises ValueError that lists the block's linears when it has no such MLP, or several.
    """
    if all(slot.holds(target) for target in targets if target in MLP):
        return slot
    names = slot.mlp or usual_mlp(slot.block, f"targets: {slot.block_path}")
    return BlockSlot(slot, Separate(names).slot(slot.modality, slot.layer, slot.block, slot.block_path))
