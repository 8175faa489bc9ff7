"""What PEFT calls a projection: the dotted path of its module; of packed ones, the path it has once they are split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import NamedTuple

from torch import nn

from mora.fields.names import ATTENTION, TARGETS
from mora.system.checks import one_of
from mora.towers.block import whole
from mora.towers.slots import Slot
from mora.towers.tower import Tower

PREFIX = "base_model.model."
NAMES = ("model", "hugging_face")
CLIP_TOWERS = {"image": "vision_model", "text": "text_model"}
CLIP_PLACES = {
    **{target: f"self_attn.{target}_proj" for target in ATTENTION},
    **{target: f"mlp.{target}" for target in TARGETS if target not in ATTENTION},
}


class Place(NamedTuple):
    """A projection: "image", 11, "q"."""

    modality: str
    layer: int
    target: str

    @property
    def label(self) -> str:
        """ "image.11.q"."""
        return f"{self.modality}.{self.layer}.{self.target}"


def places(model: nn.Module, towers: Mapping[str, Tower]) -> dict[str, Place]:
    """Every projection of a model that can be adapted, by the path that PEFT's files give it."""
    found: dict[str, Place] = {}
    for modality, tower in towers.items():
        slots: list[Slot] = []
        with suppress(ValueError):  # a tower without attention has none
            slots = tower.slots(model)
        for slot in slots:
            for target in TARGETS:
                with suppress(ValueError):
                    (path,) = whole(slot, (target,)).linear_names((target,))
                    found[path] = Place(modality, slot.layer, target)
    return found


def path_of(slot: Slot, target: str, names: str) -> str:
    """The path of one adapted projection, in its own model or in Hugging Face's CLIP; ValueError for a third tower."""
    one_of("names", names, NAMES)
    if names == "model":
        return slot.linear_names((target,))[0]
    if slot.modality not in CLIP_TOWERS:
        raise ValueError(f"names: got 'hugging_face' for a tower {slot.modality!r}, expected image and text alone")
    return f"{CLIP_TOWERS[slot.modality]}.encoder.layers.{slot.layer}.{CLIP_PLACES[target]}"


def ambiguous(paths: Iterable[str], every: Iterable[str]) -> bool:
    """Whether PEFT, which matches names by their ends, would find more modules than these."""
    ends = tuple(f".{path}" for path in paths)
    return any(path.endswith(ends) for path in every)
