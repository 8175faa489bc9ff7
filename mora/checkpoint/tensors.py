"""Strict comparison and assignment of adapter tensors: all of them fit, or nothing changes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mora.adapters import Adapters, Pair
from mora.config import MoraConfig

SPECIFIC = ("specific_a", "specific_b", "specific_magnitude")
# What changes the computed weights; dropout, init and backend do not.
WEIGHT_FIELDS = ("variant", "targets", "common_rank", "rank", "alpha")


def expected_shapes(pairs: list[Pair], config: MoraConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every adapter tensor that `config` makes on these blocks, by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for position, pair in enumerate(pairs):
        for modality, site in pair.items():
            shapes[f"common.{position}.{modality}"] = (site.width(config.targets), config.shared_rank)
    for pair in pairs:
        for modality, site in pair.items():
            width, rank = site.width(config.targets), config.specific_rank(modality)
            for target in config.targets:
                name = f"{modality}.{site.layer}.{target}"
                if config.variant != "no-specific":
                    shapes[f"{name}.specific_a"] = (width, rank)
                    shapes[f"{name}.specific_b"] = (rank, width)
                shapes[f"{name}.common_magnitude"] = (width,)
                if config.variant != "no-specific":
                    shapes[f"{name}.specific_magnitude"] = (width,)
    return shapes


def check_same_adapters(source: str, theirs: MoraConfig, ours: MoraConfig) -> None:
    """Raise ValueError that names the first field in which a checkpoint and a patched model differ."""
    for field in WEIGHT_FIELDS:
        got, expected = getattr(theirs, field), getattr(ours, field)
        if field == "common_rank":
            got, expected = theirs.shared_rank, ours.shared_rank
        elif field == "rank":
            got, expected = ranks(theirs), ranks(ours)
        if got != expected:
            raise ValueError(f"{field}: {source} has {got!r}, the patched model has {expected!r}: expected the same")


def ranks(config: MoraConfig) -> dict[str, int]:
    """The specific rank of each modality."""
    return {modality: config.specific_rank(modality) for modality in ("image", "text")}


def check_tensors(source: str, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError unless `tensors` are exactly `shapes`, floating-point and finite; the message names them."""
    missing = [name for name in shapes if name not in tensors]
    extra = [name for name in tensors if name not in shapes]
    if missing or extra:
        found = [f"missing {', '.join(missing)}"] if missing else []
        found += [f"unexpected {', '.join(extra)}"] if extra else []
        raise ValueError(f"{source}: got {'; '.join(found)}; expected exactly the tensors of the adapted projections")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{source}: {name} has shape {tuple(tensor.shape)}, expected {shape}")
        if not tensor.is_floating_point():
            raise ValueError(f"{source}: {name} has dtype {tensor.dtype}, expected a floating-point dtype")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{source}: {name} has NaN or infinite elements, expected finite ones")


@torch.no_grad()
def assign(adapters: Adapters, tensors: Mapping[str, Tensor]) -> None:
    """Copy checked tensors into the adapters, in place."""
    for name, parameter in adapters.named_tensors():
        parameter.copy_(tensors[name])
