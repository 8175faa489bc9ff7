"""Values that are the same for every tower, or one for each: {"image": ..., "text": ...}."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from mora.system.checks import check_whole, is_whole
from mora.system.messages import printable, shown

T = TypeVar("T")


def by_tower(field: str, given: Any, check: Callable[[str, Any], T]) -> T | dict[str, T]:
    """The checked value, or the checked values by modality; ValueError unless the keys are names.

    Args:
        field: its name.
        given: one value, or a mapping from modalities to values.
        check: (name, value) -> value as it is kept; raises ValueError that begins with the name.
    """
    if not isinstance(given, Mapping):
        return check(field, given)
    check_modality_names(field, given)
    return {modality: check(f"{field}[{shown(modality)}]", given[modality]) for modality in sorted(given)}


def check_modality_names(field: str, given: Mapping[Any, Any]) -> None:
    """Raise ValueError unless the keys are names, one at least."""
    if not given or not all(isinstance(modality, str) and modality for modality in given):
        raise ValueError(f"{field}: got keys {shown(list(given))}, expected names of modalities")


def of(value: T | dict[str, T], modality: str) -> T:
    """The value of one tower."""
    return value[modality] if isinstance(value, dict) else value


def check_keys(field: str, value: object, towers: Iterable[str], needed: Iterable[str]) -> None:
    """Raise ValueError that names the keys of a value by tower which are no tower, or are absent.

    Args:
        field: its name.
        value: what `by_tower` returned.
        towers: of the model.
        needed: those of them that have to be among the keys.
    """
    if not isinstance(value, dict):
        return
    expected = [*towers]
    unknown = [shown(modality) for modality in value if modality not in expected]
    missing = [repr(modality) for modality in needed if modality not in value]
    if found := [f"{what} {', '.join(names)}" for what, names in (("unknown", unknown), ("missing", missing)) if names]:
        names = ", ".join(map(repr, expected))
        raise ValueError(f"{field}: got keys {shown([*value])} ({'; '.join(found)}), expected the towers, {names}")


def label(name: object, longest: int) -> str:
    """How a message calls a field that came from a file."""
    return printable(name)[:longest] if isinstance(name, str) else shown(name)


def check_rank(name: str, rank: Any) -> int | dict[int, int]:
    """One tower's rank: an int, or one for each block."""
    if name == "rank" or not isinstance(rank, Mapping):
        check_whole(name, rank, 1)
        return int(rank)
    if not rank or not all(is_whole(layer) and layer >= 0 for layer in rank):
        raise ValueError(f"{name}: got keys {shown(list(rank))}, expected indices of blocks")
    for layer in rank:
        check_whole(f"{name}[{layer}]", rank[layer], 1)
    return {layer: rank[layer] for layer in sorted(rank)}


def as_lists(value: Any) -> Any:
    """A field as JSON knows it: tuples are lists."""
    if isinstance(value, dict):
        return {key: as_lists(each) for key, each in value.items()}
    return list(value) if isinstance(value, tuple) else value


def with_indices(rank: Any) -> Any:
    """A tower's ranks by block as JSON has them, {"10": 4}, with indices for keys."""
    if not isinstance(rank, Mapping):
        return rank
    return {int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 7 else key: rank[key] for key in rank}


def check_count(name: str, count: Any) -> int:
    """How many blocks of one tower."""
    check_whole(name, count, 1)
    return int(count)


def ordered_layers(name: str, layers: Any) -> tuple[int, ...]:
    """The block indices of one tower, from bottom to top."""
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not layers:
        raise ValueError(f"{name}: got {shown(layers)}, expected a non-empty sequence of block indices")
    for layer in layers:
        check_whole(name, layer, 0)
    if len(set(layers)) < len(layers):
        raise ValueError(f"{name}: got {shown(layers)}, expected each block once")
    return tuple(sorted(layers))
