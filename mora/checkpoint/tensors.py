"""Strict comparison and assignment of adapter tensors: all of them fit, or nothing changes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from mora.adapters.record import Adapters, Pair, layers_of
from mora.config import MoraConfig
from mora.system.files import why_not_plain
from mora.system.messages import listed, printable, shown

LONGEST_NAME = 200
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SPECIFIC = ("specific_a", "specific_b", "specific_magnitude")
# What changes the computed weights; dropout, init and backend do not.
WEIGHT_FIELDS = ("variant", "targets", "common_rank", "rank", "alpha", "gram", "lora_alpha")


def expected_shapes(pairs: list[Pair], config: MoraConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every adapter tensor that `config` makes on these blocks, by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for position, pair in enumerate(pairs):
        for modality, slot in pair.items():
            targets = config.targets_of(modality)
            if config.mode(modality) != "mora":
                continue
            shapes[f"common.{position}.{modality}"] = (slot.width(targets), config.shared_rank)
            for width in slot.further(targets):
                shapes[f"common.{position}.{modality}_{width}"] = (width, config.shared_rank)
    for slot in (slot for pair in pairs for slot in pair.values()):
        for target in config.targets_of(slot.modality):
            rank, mode = config.rank_of(slot.modality, slot.layer, target), config.mode(slot.modality)
            name, (rows, columns) = slot.label(target), slot.outline(target).shape
            if mode != "mora":
                shapes |= {f"{name}.lora_a": (rank, columns), f"{name}.lora_b": (rows, rank)}
                shapes |= {f"{name}.magnitude": (rows,)} if mode == "dora" else {}
                continue
            if config.variant != "no-specific":
                shapes[f"{name}.specific_a"] = (columns, rank)
                shapes[f"{name}.specific_b"] = (rank, rows)
            shapes[f"{name}.common_magnitude"] = (columns,)
            if config.variant != "no-specific":
                shapes[f"{name}.specific_magnitude"] = (columns,)
    return shapes


def check_same_adapters(source: str, theirs: MoraConfig, adapters: Adapters) -> None:
    """Raise ValueError that names the first field in which a checkpoint and a patched model differ."""
    ours, pairs = adapters.config, adapters.pairs
    try:
        theirs.check_modalities(adapters.towers)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    if (got := modes(theirs, adapters.towers)) != (expected := modes(ours, adapters.towers)):
        raise ValueError(f"adapt: {source} has {got!r}, the patched model has {expected!r}: expected the same")
    for field in WEIGHT_FIELDS:
        got, expected = in_force(theirs, field, pairs), in_force(ours, field, pairs)
        if got != expected:
            raise ValueError(f"{field}: {source} has {got!r}, the patched model has {expected!r}: expected the same")


def modes(config: MoraConfig, modalities: Iterable[str]) -> dict[str, str]:
    """What happens to each tower."""
    return {modality: config.mode(modality) for modality in modalities}


def in_force(config: MoraConfig, field: str, pairs: list[Pair]) -> Any:
    """What a field that changes weights says for some blocks: one value for each where it may differ."""
    if field == "common_rank":
        return config.shared_rank if "mora" in config.modes() else None
    if field == "gram":
        return config.gram_of(pairs)
    slots = [slot for pair in pairs for slot in pair.values()]
    coupled = [slot.modality for slot in slots if config.mode(slot.modality) == "mora"]
    values: dict[str, Any] = {}
    if field == "lora_alpha":  # and what else makes a scale
        return {
            slot.label(target): (config.rank_of(*place, target), config.scale_of(*place, target))
            for slot in slots
            for target in config.targets_of(slot.modality)
            if slot.modality not in coupled and (place := (slot.modality, slot.layer))
        }
    if field == "rank":
        ranks = {(slot.modality, slot.layer): config.specific_rank(slot.modality, slot.layer) for slot in slots}
        for modality in layers_of(pairs):
            own = {layer: rank for (name, layer), rank in ranks.items() if name == modality}
            values[modality] = next(iter(own.values())) if len({*own.values()}) == 1 else own
        return values
    if field in ("alpha", "targets"):
        given = getattr(config, field)
        return given if not isinstance(given, dict) else {m: given[m] for m in layers_of(pairs) if m in given}
    return getattr(config, field)


def config_from(source: str, fields: Any) -> MoraConfig:
    """The configuration that a file's fields make; ValueError begins with `source` and names the field."""
    try:
        return MoraConfig.from_dict(fields)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def check_tensors(source: str, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError unless `tensors` are exactly `shapes`, and as `check_values` wants them; the message names them.

    What is missing, extra or of another shape is told before an element is read.
    """
    missing = [name for name in shapes if name not in tensors]
    extra = [printable(name) if isinstance(name, str) else shown(name) for name in tensors if name not in shapes]
    if missing or extra:
        found = [f"missing {listed(missing)}"] if missing else []
        found += [f"unexpected {listed(name[:LONGEST_NAME] for name in extra)}"] if extra else []
        raise ValueError(f"{source}: got {'; '.join(found)}; expected exactly the tensors of the adapted projections")
    check_plain(source, tensors)
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(f"{source}: {name} has shape {tuple(tensors[name].shape)}, expected {shape}")
    check_values(source, tensors)


def check_plain(source: str, tensors: Mapping[str, object]) -> None:
    """Raise ValueError naming a value that is no plain tensor with its elements stored; none is read."""
    for name, tensor in tensors.items():
        if why := why_not_plain(tensor):
            raise ValueError(f"{source}: {name} {why}")


@torch.no_grad()
def check_values(source: str, tensors: Mapping[str, Tensor]) -> None:
    """What is saved and what is loaded: plain tensors of 16, 32 or 64 bit floats, finite in float32 too.

    Raises ValueError that names the tensor. Factors are float32 unless the weights are float64: a float64 1e300 is
    finite, and infinite where it goes.
    """
    check_plain(source, tensors)
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise ValueError(
                f"{source}: {name} has dtype {tensor.dtype}, expected a floating-point dtype of 16 to 64 bit"
            )
        if not torch.isfinite(tensor.float()).all():
            raise ValueError(f"{source}: {name} has NaN or infinite elements, expected finite ones (in float32)")


def largest_file(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes that a file of such tensors may have: float64, and a header with its names."""
    return sum(8 * math.prod(shape) + len(name) + 256 for name, shape in shapes.items()) + (1 << 20)


@torch.no_grad()
def assign(adapters: Adapters, tensors: Mapping[str, Tensor], source: str = "adapter") -> None:
    """Copy checked tensors into the adapters, in place: all of them, or none.

    Raises ValueError that names a tensor whose values the adapter's dtype cannot hold (1e5 in float16).
    """
    copy_whole(source, tensors, dict(adapters.named_tensors()))


@torch.no_grad()
def copy_whole(source: str, tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
    """Copy tensors into targets of the same names and shapes once all are finite in the targets' dtypes."""
    ready = {name: tensors[name].to(target.device, target.dtype) for name, target in targets.items()}
    for name, tensor in ready.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{source}: {name} has elements that are infinite in {tensor.dtype}, expected finite ones")
    for name, target in targets.items():
        target.copy_(ready[name])
