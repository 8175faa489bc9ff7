"""How the blocks of a kind of tower hold their projections: which names q, k, v and out have there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from torch import nn

from mora.towers.admission import located
from mora.towers.fused import FusedSlot
from mora.towers.packed_slot import PackedSlot
from mora.towers.slots import SeparateSlot, Slot


@dataclass(frozen=True)
class Layout(ABC):
    """How the blocks of a kind of tower hold their projections."""

    @property
    @abstractmethod
    def attention(self) -> str:
        """Dotted path of the attention below a block."""

    @abstractmethod
    def fits(self, attention: Any) -> bool:
        """Whether an attention holds its projections this way."""

    @abstractmethod
    def slot(self, modality: str, layer: int, block: nn.Module, path: str) -> Slot:
        """The slot of one block that stands at `path` in the model."""

    def slots(self, modality: str, blocks: Iterable[tuple[str, nn.Module]]) -> list[Slot]:
        """One slot per (dotted path in the model, block); raises ValueError for one whose attention does not fit."""
        found: list[Slot] = []
        for layer, (path, block) in enumerate(blocks):
            _, attention = located(block, self.attention)
            if attention is None or not self.fits(attention):
                raise ValueError(
                    f"model: looked for an attention with q, k, v at {path}.{self.attention}, found "
                    f"{type(attention).__name__}"
                )
            found.append(self.slot(modality, layer, block, path))
        return found


@dataclass(frozen=True)
class Separate(Layout):
    """One `nn.Linear` per projection: {"q": "self_attn.q_proj", ...}, dotted paths below the block, by target."""

    names: Mapping[str, str]

    @property
    def attention(self) -> str:
        paths = [path.split(".")[:-1] for path in self.names.values()]
        return ".".join(parts[0] for parts in takewhile(lambda parts: len({*parts}) == 1, zip(*paths, strict=False)))

    def below(self) -> dict[str, str]:
        """The same paths below the attention."""
        return {target: path.removeprefix(f"{self.attention}.") for target, path in self.names.items()}

    def fits(self, attention: Any) -> bool:
        _, found = located(attention, next(iter(self.below().values())))
        return found is not None

    def slot(self, modality: str, layer: int, block: nn.Module, path: str) -> Slot:
        return SeparateSlot(modality, layer, block, self.attention, path, self.below())


@dataclass(frozen=True)
class Packed(Layout):
    """One parameter `in_proj_weight` [3 d, d] of the attention, a child of the block by the given name."""

    name: str

    @property
    def attention(self) -> str:
        return self.name

    def fits(self, attention: Any) -> bool:
        return hasattr(attention, PackedSlot.key)

    def slot(self, modality: str, layer: int, block: nn.Module, path: str) -> Slot:
        return PackedSlot(modality, layer, block, self.name, path)


@dataclass(frozen=True)
class Fused(Separate):
    """One `nn.Linear` [3 d, d] for q, k and v: {"q": "attn.qkv", "k": "attn.qkv", "v": "attn.qkv", ...}."""

    def slot(self, modality: str, layer: int, block: nn.Module, path: str) -> Slot:
        return FusedSlot(modality, layer, block, self.attention, path, self.below())
