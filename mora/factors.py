"""The common factors of one pair of blocks: the only parameters that towers share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mora.start import draw


class CommonFactors(nn.Module):
    """One factor S_m [d_m, r_c] per modality, drawn N(0, 1 / r_c); every adapted projection of the pair reads them."""

    def __init__(self, widths: Mapping[str, int], rank: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.rank = rank
        self.modalities = tuple(widths)
        for modality, width in widths.items():
            self.register_parameter(modality, nn.Parameter(torch.empty(width, rank, dtype=dtype, device=device)))
            draw(self.of(modality), rank)

    def of(self, modality: str) -> Tensor:
        """S of one modality, [d, r_c]."""
        factor: Tensor = getattr(self, modality)  # a plain tensor within `torch.func.functional_call`
        return factor

    def materialise(self, devices: Mapping[str, torch.device]) -> None:
        """Give factors on the meta device memory on the given ones, and draw them."""
        for modality in self.modalities:
            factor = self.of(modality)
            if factor.is_meta and devices[modality].type != "meta":
                empty = torch.empty_like(factor, device=devices[modality])
                setattr(self, modality, nn.Parameter(empty, requires_grad=factor.requires_grad))
                draw(self.of(modality), self.rank)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """As in `nn.Module`; memory given a moment ago is not assigned away again."""
        for modality in self.modalities:
            name, own = f"{prefix}{modality}", self.of(modality)
            if name in state_dict and state_dict[name].is_meta and not own.is_meta:
                state_dict[name] = own
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """As in `nn.Module`; memory that is new (`to_empty`) is drawn."""
        empty = [modality for modality in self.modalities if self.of(modality).is_meta]
        super()._apply(fn, recurse)
        for modality in empty:
            if not self.of(modality).is_meta:
                draw(self.of(modality), self.rank)
        return self

    def others(self, modality: str) -> list[Tensor]:
        """S of every other modality; its own where it stands alone, so that C = S (S^T S) S^T."""
        return [self.of(name) for name in self.modalities if name != modality] or [self.of(modality)]

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={tuple(self.of(name).shape)}" for name in self.modalities)
