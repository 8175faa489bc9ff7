"""A tower: one modality's stack of blocks. What the rest of the library asks of a model, whatever it is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mora.towers.slots import Slot


@dataclass(frozen=True)
class Tower(ABC):
    """How one modality of a model is run. A description: it holds no module, so it can be copied, pickled and kept.

    Every method takes the model first. A kind of tower needs these five methods; it can be adapted and runs from end to
    end then. One that is a `mora.towers.cutting.CutTower` can be cut in two as well.

    Attributes:
        modality: its name in the model: "image", "text" or any other.
        kind: what it is, in words.
        family: kinds of one family hold the same projections under the same names, whatever library made them, so that
            an adapter of one may be loaded into another.
    """

    modality: str
    kind: ClassVar[str]
    family: ClassVar[str] = "transformer"
    one_stream: ClassVar[bool] = False  # whether its blocks are those of the other modalities

    @abstractmethod
    def slots(self, model: Any) -> list[Slot]:
        """Where each block can be adapted, one slot per block from bottom to top.

        Raises ValueError when the tower has no attention that is known.
        """

    @abstractmethod
    def encode(self, model: Any, inputs: Tensor) -> Tensor:
        """Un-normalised embeddings [B, e] of a batch of inputs."""

    @abstractmethod
    def width(self, model: Any) -> int:
        """e, the width of its embeddings."""

    @abstractmethod
    def substitute(self, model: Any) -> Tensor:
        """What stands for a missing input, one row of inputs; ValueError when it cannot be known."""

    @abstractmethod
    def random(self, model: Any, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Random inputs [batch, ...] that the tower can embed; ValueError when their form cannot be known."""

    def untried(self, model: Any) -> str:
        """Why the tower cannot be run on random inputs, in words that say what is needed; "" when it can."""
        return ""

    def padding(self, model: Any) -> int | None:
        """The token with which any input may be filled up, as nothing reads it; None where there is none."""
        return None

    def blocks(self, model: Any) -> list[nn.Module]:
        """What stands in its list of blocks, from bottom to top; ValueError as `slots`."""
        return [slot.block for slot in self.slots(model)]


def descend(model: Any, path: str) -> Any:
    """The module at a dotted path, or None; the model itself for ""."""
    found = model
    for name in path.split(".") if path else ():
        found = getattr(found, name, None)
    return found


def fitting(inputs: Tensor, like: Tensor) -> Tensor:
    """`inputs` on the device of a weight, and in its dtype unless they are whole numbers (tokens)."""
    return inputs.to(like) if inputs.is_floating_point() else inputs.to(like.device)
