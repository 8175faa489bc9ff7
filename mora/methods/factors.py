"""The common factors of one pair of blocks: the only parameters that towers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mora.methods.start import draw


class CommonFactors(nn.Module):
    """One factor S_m [d_m, r_c] per modality, drawn N(0, 1 / r_c); every adapted projection of the pair reads them.

    Args:
        widths: the main width d_m of each modality, to which projections inside the residual stream are square.
        rank: r_c.
        dtype, device: of the factors.
        further: other widths of a modality at which an adapted projection begins or ends (the hidden width of an MLP,
            the input of cross-attention). Each has one factor, named "image_3072"; the main one is named "image".
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        rank: int,
        dtype: torch.dtype,
        device: torch.device,
        further: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        self.rank = rank
        self.modalities, self.widths = tuple(widths), dict(widths)
        sizes = [(modality, modality, width) for modality, width in widths.items()]
        for modality, others in (further or {}).items():
            if modality not in widths:
                raise ValueError(f"further: got modality {modality!r}, expected one of {', '.join(widths)}")
            apart = sorted({*others} - {widths[modality]})
            sizes += [(f"{modality}_{width}", modality, width) for width in apart]
        self.owners = {name: modality for name, modality, _ in sizes}
        for name, _, width in sizes:
            self.register_parameter(name, nn.Parameter(torch.empty(width, rank, dtype=dtype, device=device)))
            draw(self.of(name), rank)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of every factor: the modalities, then those of further widths."""
        return tuple(self.owners)

    def name(self, modality: str, width: int) -> str:
        """The name of a modality's factor for one width; ValueError when there is none."""
        if width == self.widths[modality]:
            return modality
        if f"{modality}_{width}" not in self.owners:
            found = ", ".join(f"{name} [{self.of(name).shape[0]}, {self.rank}]" for name in self.names)
            raise ValueError(f"common: got the factors {found}, expected one of {modality} for width {width} as well")
        return f"{modality}_{width}"

    def of(self, name: str) -> Tensor:
        """One factor [width, r_c] by its name: a modality's main one is named like the modality."""
        factor: Tensor = getattr(self, name)  # a plain tensor within `torch.func.functional_call`
        return factor

    def materialise(self, devices: Mapping[str, torch.device]) -> None:
        """Give factors on the meta device memory on the given ones, and draw them."""
        for name, modality in self.owners.items():
            factor = self.of(name)
            if factor.is_meta and devices[modality].type != "meta":
                empty = torch.empty_like(factor, device=devices[modality])
                setattr(self, name, nn.Parameter(empty, requires_grad=factor.requires_grad))
                draw(self.of(name), self.rank)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """As in `nn.Module`; memory given a moment ago is not assigned away again."""
        for name in self.names:
            key, own = f"{prefix}{name}", self.of(name)
            if key in state_dict and state_dict[key].is_meta and not own.is_meta:
                state_dict[key] = own
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """As in `nn.Module`; memory that is new (`to_empty`) is drawn."""
        empty = [name for name in self.names if self.of(name).is_meta]
        super()._apply(fn, recurse)
        for name in empty:
            if not self.of(name).is_meta:
                draw(self.of(name), self.rank)
        return self

    def others(self, modality: str) -> list[Tensor]:
        """S of every other modality at its main width, what G is made of; its own where it stands alone."""
        return [self.of(name) for name in self.modalities if name != modality] or [self.of(modality)]

    def expected_root(self, modality: str, scale: float = 1.0) -> Tensor:
        """R [r_c, r_c] with R^T R = (d / r_c) I, what a modality's G is at the start on average.

        d adds up the others' widths, times the scale of G.
        On the device and in the dtype of that modality's factor.
        """
        width = scale * sum(factor.shape[0] for factor in self.others(modality))
        own = self.of(modality)
        return torch.eye(self.rank, dtype=own.dtype, device=own.device) * (width / self.rank) ** 0.5

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={tuple(self.of(name).shape)}" for name in self.names)
