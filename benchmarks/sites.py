"""Projections like those of a patched CLIP, without a CLIP around them: what `Group` takes, and nothing more."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mora_kernels.testing import make_factors

NAMES = ("specific_a", "specific_b", "common_magnitude", "specific_magnitude")
TENSORS = ("weight", "bias", "x", "grad")


class Site:
    """One adapted projection: frozen weight, own factors, common factors shared with its neighbours."""

    gram_scale = 1.0

    def __init__(self, commons: dict[str, Tensor], modality: str, tensors: Mapping[str, Tensor], alpha: float) -> None:
        self.commons, self.modality, self.alpha = commons, modality, alpha
        self.weight, self.bias, self.x, self.grad = (tensors[name] for name in TENSORS)
        self.own = {name: tensors[name].clone().requires_grad_() for name in NAMES}

    def factors(self) -> tuple:
        """The arguments of `effective_weight` between `weight` and `alpha`."""
        others = [value for name, value in self.commons.items() if name != self.modality]
        return self.commons[self.modality], others, *(self.own[name] for name in NAMES)

    def leaves(self) -> dict[str, Tensor]:
        """Every trainable tensor, by name."""
        return {**{f"common {name}": value for name, value in self.commons.items()}, **self.own}


def doubled(sites: Sequence[Site]) -> list[Site]:
    """Copies in float64 that share their common factors as the originals do."""
    commons = {
        id(site.commons): {name: value.detach().double().requires_grad_() for name, value in site.commons.items()}
        for site in sites
    }
    twins = []
    for site in sites:
        twin = copy.copy(site)
        for name in TENSORS:
            setattr(twin, name, getattr(site, name).double())
        twin.own = {name: value.detach().double().requires_grad_() for name, value in site.own.items()}
        twin.commons = commons[id(site.commons)]
        twins.append(twin)
    return twins


def preset(
    image: int, text: int, rows: int, device: str, layers: int = 2, targets: int = 2, rank: int = 4, alpha: float = 0.01
) -> list[Site]:
    """Return the projections of the published recipe: two layers, two towers, two targets, rank 4 + 4."""
    generator, sites = torch.Generator().manual_seed(1), []
    for layer in range(layers):
        widths = {"image": image, "text": text}
        commons = {
            name: (torch.randn(width, rank, generator=generator) * rank**-0.5).to(device).requires_grad_()
            for name, width in widths.items()
        }
        for name, width in widths.items():
            for target in range(targets):
                made = make_factors(width, (8,), rank=rank, alpha=alpha, rows=rows, seed=10 * layer + target)
                tensors = {k: getattr(made, k).detach().float().to(device) for k in (*NAMES, *TENSORS)}
                sites.append(Site(commons, name, tensors, alpha))
    return sites
