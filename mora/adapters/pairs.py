"""Which blocks are adapted, and which of them share factors: one of every tower where they have a counterpart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from mora.adapters.record import Pair
from mora.config import MoraConfig
from mora.fields.per_tower import of
from mora.towers.block import whole
from mora.towers.slots import Slot
from mora.towers.tower import Tower

T = TypeVar("T")


def adapted_towers(towers: Mapping[str, Tower], config: MoraConfig) -> dict[str, Tower]:
    """The towers that `config` adapts; raises ValueError for a field by tower that does not fit the model's."""
    config.check_modalities(towers)
    return {modality: tower for modality, tower in towers.items() if config.mode(modality) != "frozen"}


def slots_of(model: nn.Module, towers: Mapping[str, Tower], config: MoraConfig) -> dict[str, list[Slot]]:
    """The slots of every block of the adapted towers, by modality; raises ValueError for one that cannot be adapted."""
    adapted = adapted_towers(towers, config)
    found = {}
    for modality, tower in adapted.items():
        try:
            found[modality] = tower.slots(model)
        except ValueError as error:
            others = [other for other in adapted if other != modality]
            if not others or tower.one_stream:
                raise
            modes = ", ".join(f"{name!r}: {'mora' if name in others else 'frozen'!r}" for name in towers)
            raise ValueError(f"{error}; or leave it as it is and adapt the rest: adapt={{{modes}}}") from error
        found[modality] = [whole(slot, config.targets_of(modality)) for slot in found[modality]]
    return found


def pair_blocks(slots: Mapping[str, list[Slot]], config: MoraConfig) -> list[Pair]:
    """The blocks to adapt, those that share factors together, from bottom to top; ValueError when there are none.

    In a model of one stream they are the modalities of one block.
    """
    pairs = pairs_by_rule(slots, config)
    if not any(slot.one_stream for pair in pairs for slot in pair.values()):
        return pairs
    chosen = [(slot.layer, m, slot) for pair in pairs for m, slot in pair.items()]
    layers = sorted({layer for layer, _, _ in chosen})
    return [{m: slot for own, m, slot in chosen if own == layer} for layer in layers]


def pairs_by_rule(slots: Mapping[str, list[Slot]], config: MoraConfig) -> list[Pair]:
    """The same for towers: blocks of each that stand beside each other.

    With one number for all towers only blocks that have a counterpart in every tower are adapted. With a number or a
    list for each tower the rule applies to what is named, and what has no counterpart stands alone.
    """
    layers = config.layers
    if layers is not None:
        named = {m: at(m, each, layers[m] if isinstance(layers, dict) else layers) for m, each in slots.items()}
        return aligned(named, config.pair_layers)
    if config.first_layer is not None:
        return from_layer(slots, config.first_layer, config.pair_layers)
    shown = depths_of(slots)
    for modality, each in slots.items():
        if (last := of(config.last_layers, modality)) > len(each):
            name = f"last_layers[{modality!r}]" if isinstance(config.last_layers, dict) else "last_layers"
            raise ValueError(f"{name}: got {last}, expected at most the model's blocks: {shown}")
    if isinstance(config.last_layers, int):
        return complete(slots, config.pair_layers)[-config.last_layers :]
    tops = {modality: each[len(each) - config.last_layers[modality] :] for modality, each in slots.items()}
    return aligned(tops, config.pair_layers)


def from_layer(slots: Mapping[str, list[Slot]], first: int, rule: str) -> list[Pair]:
    """The pairs from an absolute block index on."""
    depths = {len(each) for each in slots.values()}
    if len(depths) > 1 and rule != "bottom":
        raise ValueError(
            f"first_layer: got {first} with towers of unequal depth ({depths_of(slots)} blocks), expected equal "
            "depths: use last_layers, which pairs from the top, or pair_layers='bottom'"
        )
    if first >= min(depths):
        raise ValueError(f"first_layer: got {first}, no block matched: the model has {depths_of(slots)} blocks")
    return complete(slots, rule)[first:]


def at(modality: str, slots: Sequence[Slot], layers: Iterable[int]) -> list[Slot]:
    """The slots of some block indices; ValueError for one that is none."""
    if outside := [layer for layer in layers if layer >= len(slots)]:
        raise ValueError(
            f"layers: got {outside[0]} for the {modality} tower, expected indices of its blocks, 0 to {len(slots) - 1}"
        )
    return [slots[layer] for layer in layers]


def depths_of(slots: Mapping[str, Sequence[Any]]) -> str:
    """`12 image, 24 text`."""
    return ", ".join(f"{len(each)} {modality}" for modality, each in slots.items())


def complete(lists: Mapping[str, Sequence[T]], rule: str) -> list[dict[str, T]]:
    """Those of `aligned` that have one of every tower."""
    return [group for group in aligned(lists, rule) if len(group) == len(lists)]


def aligned(lists: Mapping[str, Sequence[T]], rule: str) -> list[dict[str, T]]:
    """Groups of one of each list at most, from bottom to top of the longest list.

    Every item of the shortest list gets a counterpart in each of the others, by `rule`:

        top: as many from the end;  bottom: as many from the start;  proportional: at the same part of the length.

    What is left of the others is aligned likewise.
    """
    longest = max(lists.values(), key=lambda each: len(each), default=[])
    place = {id(item): number for number, item in enumerate(longest)}
    rest = {modality: [*each] for modality, each in lists.items()}
    groups: list[dict[str, T]] = []
    while rest := {modality: each for modality, each in rest.items() if each}:
        least = min(map(len, rest.values()))
        chosen = {modality: places(least, len(each), rule) for modality, each in rest.items()}
        groups += [{modality: each[chosen[modality][n]] for modality, each in rest.items()} for n in range(least)]
        rest = {m: [item for n, item in enumerate(each) if n not in chosen[m]] for m, each in rest.items()}
    # The longest list is the last to be used up: every group has an item of it.
    return sorted(groups, key=lambda group: next(place[id(item)] for item in group.values() if id(item) in place))


def places(count: int, length: int, rule: str) -> list[int]:
    """Which items of a list of `length` stand beside those of a list of `count`, one each."""
    if rule == "proportional":
        return [(number + 1) * length // count - 1 for number in range(count)]
    start = length - count if rule == "top" else 0
    return [start + number for number in range(count)]
