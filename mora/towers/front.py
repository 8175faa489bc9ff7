"""Rows that stand before a sample's own in every block of a tower: what learned prompts are to it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Front(NamedTuple):
    """Rows before the first of each sample, from the first block that is run on; every later row attends to them.

    Attributes:
        renewed: [K, D, N, d], of each of K kinds of samples; those of block i are put in the place of what block i - 1
            made of its own, up to block D - 1, whose stay.
        kinds: int64 [B], which of the K each sample is.
        kept: [B, M, d], behind those, that enter the first block and stay; None: none.
    """

    renewed: Tensor
    kinds: Tensor
    kept: Tensor | None = None

    @property
    def length(self) -> int:
        """N + M, how many rows stand before a sample's own."""
        return self.renewed.shape[2] + (0 if self.kept is None else self.kept.shape[1])

    def enter(self, index: int, hidden: Tensor) -> Tensor:
        """What enters block `index`, counted from the first one run, of what left the one before, [B, L, d]."""
        depth, count = self.renewed.shape[1:3]
        if index >= depth:
            return hidden
        rows = self.renewed[self.kinds, index].to(hidden.dtype)
        if index:
            return torch.cat([rows, hidden[:, count:]], dim=1)
        return torch.cat([rows, *([] if self.kept is None else [self.kept.to(hidden.dtype)]), hidden], dim=1)
