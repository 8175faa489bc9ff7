"""Which modalities each row has: one value, of any modalities. The official code 0, 1, 2 is at its border."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mora.data.missing import COMPLETE, IMAGE_MISSING, TEXT_MISSING
from mora.system.messages import rows_of

PAIR = ("image", "text")  # of the published data sets and tables


@dataclass(frozen=True, eq=False)
class Presence:
    """Which of some modalities each of N rows has: `mask` bool [N, M], a column for each of `modalities`."""

    modalities: tuple[str, ...]
    mask: Tensor

    def __post_init__(self) -> None:
        """ValueError for a mask of another shape or type, or modalities that are not each there once."""
        if len(set(self.modalities)) < len(self.modalities) or not self.modalities:
            raise ValueError(f"modalities: got {', '.join(self.modalities) or 'none'}, expected some, each once")
        if self.mask.dtype != torch.bool or self.mask.ndim != 2 or self.mask.shape[1] != len(self.modalities):
            got = f"{self.mask.dtype} of shape {list(self.mask.shape)}"
            raise ValueError(f"mask: got {got}, expected torch.bool of shape [rows, {len(self.modalities)}]")

    @classmethod
    def of(cls, present: Mapping[str, Tensor]) -> Presence:
        """Of a mask bool [N] for each modality."""
        return cls(tuple(present), torch.stack([*present.values()], dim=1))

    @classmethod
    def of_codes(cls, codes: Tensor) -> Presence:
        """Of the official code, [N]: 0 complete, 1 text missing, 2 image missing."""
        return cls(PAIR, torch.stack([codes != IMAGE_MISSING, codes != TEXT_MISSING], dim=1))

    def __len__(self) -> int:
        return len(self.mask)

    def __getitem__(self, modality: str) -> Tensor:
        """Which rows have a modality, bool [N]."""
        return self.mask[:, self.modalities.index(modality)]

    def by_modality(self) -> dict[str, Tensor]:
        """Which rows have each, bool [N]."""
        return {modality: self[modality] for modality in self.modalities}

    def rows(self, index: Tensor) -> Presence:
        """Of some rows, int64 [K]."""
        return Presence(self.modalities, self.mask[index])

    def over(self, modalities: tuple[str, ...]) -> Presence:
        """With columns for these modalities: everybody has those that were not told of."""
        there = self.by_modality()
        everybody = torch.ones(len(self), dtype=torch.bool)
        return Presence(modalities, torch.stack([there.get(modality, everybody) for modality in modalities], dim=1))

    def of_towers(self, towers: Iterable[str]) -> Presence:
        """With columns for a model's towers: nobody has what the data has not."""
        there, nobody = self.by_modality(), torch.zeros(len(self), dtype=torch.bool)
        return Presence.of({name: there.get(name, nobody) for name in towers})

    def within(self, natural: Presence) -> Presence:
        """What is left of `natural` where a table leaves these; a row that would have nothing keeps all it has."""
        left = natural.mask & self.over(natural.modalities).mask
        return Presence(natural.modalities, torch.where(left.any(dim=1, keepdim=True), left, natural.mask))

    @property
    def complete(self) -> int:
        """How many rows have all."""
        return int(self.mask.all(dim=1).sum())

    @property
    def missing(self) -> dict[str, int]:
        """How many rows lack each modality."""
        return {modality: int((~self[modality]).sum()) for modality in self.modalities}

    def codes(self) -> Tensor:
        """What each row lacks, int8 [N]: 0 nothing, 1 its text, 2 its image; ValueError for other modalities."""
        if set(self.modalities) != set(PAIR):
            raise ValueError(
                f"modalities: got {', '.join(self.modalities)}, expected image and text: the code 0, 1, 2 tells of "
                "no others; see Dataset.present and mora.data.presence_of"
            )
        lacks = torch.full((len(self),), COMPLETE, dtype=torch.int8)
        return lacks.masked_fill(~self["text"], TEXT_MISSING).masked_fill(~self["image"], IMAGE_MISSING)

    def refuse_empty(self, where: str) -> None:
        """ValueError that names the rows, counted from 1, that have nothing."""
        empty = (~self.mask.any(dim=1)).nonzero().flatten().tolist()
        if empty:
            names = " and ".join((", ".join(self.modalities[:-1]), self.modalities[-1]))
            rows = rows_of([row + 1 for row in empty])
            raise ValueError(f"{where}: got {rows} without {names}, expected one at least")
