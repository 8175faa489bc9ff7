"""The data of the demo as the adapted blocks see it: every frozen block has run already, once per sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from mora.towers.find import cut_towers_of


@dataclass(frozen=True)
class Part:
    """One split: hidden rows [N, L, d] that enter the first adapted block of each tower, token ids and labels.

    The last row of `image`, `text` and `tokens` is the substitute of a missing one, so they hold N + 1 rows.
    """

    image: Tensor
    text: Tensor
    tokens: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: str) -> Part:
        """The same on another device."""
        return Part(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


@dataclass(frozen=True)
class Prefixes:
    """Every split after the frozen blocks; `first` is the index of the first adapted block by modality."""

    train: Part
    validation: Part
    test: Part
    first: dict[str, int]
    classes: tuple[str, ...]

    def to(self, device: str) -> Prefixes:
        """The same on another device."""
        train, validation, test = (part.to(device) for part in (self.train, self.validation, self.test))
        return Prefixes(train, validation, test, first=self.first, classes=self.classes)


@dataclass(frozen=True)
class Inputs:
    """One split before any block: uint8 images [N, 3, H, W], token ids [N, L], labels [N]."""

    images: Tensor
    tokens: Tensor
    labels: Tensor


def load_inputs(tokenizer: Any, limit: int | None) -> tuple[dict[str, Inputs], tuple[str, ...]]:
    """The built-in drawings by split, and the class names; `limit` keeps evenly spaced rows of each split."""
    from mora.data.dataset import SPLITS
    from mora.data.sources import openmoji

    inputs = {}
    for split in SPLITS:
        samples = openmoji.load(split, progress=True)
        rows = torch.arange(len(samples))
        if limit is not None and limit < len(samples):
            rows = torch.linspace(0, len(samples) - 1, limit).long()
        inputs[split] = Inputs(samples.images[rows], tokenizer(samples.texts)[rows], samples.labels[rows])
    return inputs, openmoji.classes()


@torch.no_grad()
def compute_prefixes(
    model: Any,
    preprocess: Callable[[Tensor], Tensor],
    inputs: dict[str, Inputs],
    classes: tuple[str, ...],
    last_layers: int,
    advance: Callable[[int], None],
    batch: int = 128,
) -> Prefixes:
    """Run the blocks below the last `last_layers` of each tower, once per sample; `advance` is told of rows done.

    Raises ValueError when a tower has fewer blocks.
    """
    towers = cut_towers_of(model)
    depths = {modality: len(tower.blocks(model)) for modality, tower in towers.items()}
    if last_layers > min(depths.values()):
        shown = ", ".join(f"{depth} {modality}" for modality, depth in depths.items())
        raise ValueError(f"last_layers: got {last_layers}, expected at most the model's blocks: {shown}")
    first = {modality: depth - last_layers for modality, depth in depths.items()}
    lone = {modality: tower.substitute(model)[None] for modality, tower in towers.items()}

    def run(modality: str, rows: Tensor, prepare: Callable[[Tensor], Tensor]) -> Tensor:
        tower, done = towers[modality], []
        for chunk in rows.split(batch):
            done.append(tower.prefix(model, prepare(chunk), first[modality]))
            advance(len(chunk))
        return torch.cat([*done, tower.prefix(model, lone[modality], first[modality])])

    parts = {
        split: Part(
            image=run("image", given.images, preprocess),
            text=run("text", given.tokens, lambda tokens: tokens),
            tokens=torch.cat([given.tokens, lone["text"]]),
            labels=given.labels,
        )
        for split, given in inputs.items()
    }
    return Prefixes(**parts, first=first, classes=classes)
