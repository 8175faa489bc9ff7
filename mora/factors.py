"""The common factors of one pair of blocks: the only parameters that two towers share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class CommonFactors(nn.Module):
    """One factor S_m [d_m, r_c] per modality, drawn N(0, 1 / r_c); every adapted projection of the pair reads them."""

    def __init__(self, widths: Mapping[str, int], rank: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.rank = rank
        self.modalities = tuple(widths)
        for modality, width in widths.items():
            factor = torch.empty(width, rank, dtype=dtype, device=device)
            self.register_parameter(modality, nn.Parameter(nn.init.normal_(factor, std=rank**-0.5)))

    def of(self, modality: str) -> Tensor:
        """S of one modality, [d, r_c]."""
        return self.get_parameter(modality)

    def others(self, modality: str) -> list[Tensor]:
        """S of every other modality."""
        return [self.get_parameter(name) for name in self.modalities if name != modality]

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={tuple(self.of(name).shape)}" for name in self.modalities)
