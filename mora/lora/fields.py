"""What a configuration says of LoRA and DoRA: their scale, and ranks of single projections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mora.fields.names import TARGETS
from mora.fields.per_tower import by_tower, check_modality_names
from mora.system.checks import check_whole, is_number, one_of
from mora.system.messages import shown

METHODS = ("mora", "lora", "dora")
LORA = ("lora", "dora")
MODES = (*METHODS, "frozen")
LARGEST = 1e6


def check_scale(name: str, scale: Any) -> float:
    """One lora_alpha."""
    if not is_number(scale) or not 0 < scale <= LARGEST:
        raise ValueError(f"{name}: got {shown(scale)}, expected a positive number of at most {LARGEST:g}, or None")
    return float(scale)


def checked_scale(scale: Any) -> float | dict[str, float] | None:
    """lora_alpha as it is kept: one, one for each tower, or None."""
    return None if scale is None else by_tower("lora_alpha", scale, check_scale)


def checked_pattern(name: str, pattern: Any) -> dict[str, Any] | None:
    """rank_pattern or alpha_pattern as it is kept: values by projection, "image.11.q", or by target, "q"."""
    if pattern is None:
        return None
    if not isinstance(pattern, Mapping) or not pattern or not all(map(is_place, pattern)):
        raise ValueError(
            f"{name}: got {shown(pattern)}, expected values by target or projection, {{'q': 8, 'image.11.v': 4}}, or "
            "None"
        )
    for place, value in pattern.items():
        if name == "rank_pattern":
            check_whole(f"{name}[{place!r}]", value, 1)
        else:
            check_scale(f"{name}[{place!r}]", value)
    return dict(sorted(pattern.items()))


def is_place(place: object) -> bool:
    """Whether `place` names a target or a projection."""
    if not isinstance(place, str):
        return False
    modality, _, rest = place.rpartition(".")[0].rpartition(".")
    return place in TARGETS or (bool(modality) and rest.isdecimal() and place.rpartition(".")[2] in TARGETS)


def of_projection(pattern: Mapping[str, Any] | None, modality: str, layer: int, target: str, usual: Any) -> Any:
    """What holds for one projection: its own value, else that of its target, else the usual one."""
    found = pattern or {}
    return found.get(f"{modality}.{layer}.{target}", found.get(target, usual))


def check_strange(fields: Mapping[str, Any], modes: set[str], usual: Mapping[str, Any]) -> None:
    """Raise ValueError for a field that means nothing to any tower's method, and is not left at its default."""
    for field in ("alpha", "variant"):
        if "mora" not in modes and fields[field] != usual[field]:
            hint = ", whose scale is lora_alpha / rank: expected lora_alpha" if field == "alpha" else ", expected none"
            raise ValueError(f"{field}: got {shown(fields[field])} with method {shown(sorted(modes)[0])}{hint}")
    if "mora" not in modes and fields["backend"] == "triton":
        raise ValueError(
            "backend: got 'triton' for LoRA or DoRA, which are products of the library of the device, expected "
            "'auto', 'torch' or 'reference'"
        )
    for field in ("lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"):
        if not modes & {*LORA} and fields[field] != usual[field]:
            raise ValueError(
                f"{field}: got {shown(fields[field])} where no tower has method 'lora' or 'dora', expected it left out"
            )


def checked_modes(adapt: Any) -> dict[str, str]:
    """What happens to each tower, as it is kept; one of them at least is adapted."""
    if not isinstance(adapt, Mapping):
        raise ValueError(
            f"adapt: got {shown(adapt)}, expected a mode for each tower, {{'image': 'mora', ...}}, or None"
        )
    check_modality_names("adapt", adapt)
    for modality, mode in adapt.items():
        name = f"adapt[{shown(modality)}]"
        one_of(name, mode, MODES)
    if {*adapt.values()} == {"frozen"}:
        raise ValueError("adapt: got 'frozen' for every tower, expected one at least that is adapted")
    return {modality: adapt[modality] for modality in sorted(adapt)}
