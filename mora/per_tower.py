"""Values that are the same for every tower, or one for each: {"image": ..., "text": ...}."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

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
