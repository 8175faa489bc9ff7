"""Which towers a model of a library has: a recipe each. A new library is a recipe, in `RECIPES`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from mora.towers import (
    hugging_face,
    kinds,
    open_clip,
    resnet,
    single,
    single_stream,
    spectrogram,
    text_encoder,
    timm,
    two_towers,
)
from mora.towers.custom import described
from mora.towers.spectrogram import AUDIO_BLOCKS
from mora.towers.tower import Tower, descend

OWN = "mora_towers"


class Recipe(ABC):
    """One library's way to put towers into a model.

    Attributes:
        name: of the library.
        looked_for: what its models have, in words.
    """

    name: str
    looked_for: str

    @abstractmethod
    def matches(self, model: Any) -> bool:
        """Whether `model` is of this library."""

    @abstractmethod
    def unsupported(self, model: Any) -> list[str]:
        """Why a model of this library cannot be used, a reason each; empty when all of the library works on it."""

    @abstractmethod
    def towers(self, model: Any) -> dict[str, Tower]:
        """The towers of a model that matches and is supported, by modality, in the order of their embeddings."""


class Own(Recipe):
    """A model that says itself what its towers are: `mora_towers`, as `mora.patch(model, towers=...)` takes them.

    A module around models of several libraries has it, with a `mora.Tower` or a tower of `mora.towers` for each.
    """

    name = "its own"
    looked_for = OWN

    def matches(self, model: Any) -> bool:
        return isinstance(getattr(model, OWN, None), Mapping)

    def unsupported(self, model: Any) -> list[str]:
        return []

    def towers(self, model: Any) -> dict[str, Tower]:
        return described(model, getattr(model, OWN))


class HuggingFace(Recipe):
    """`transformers.CLIPModel`, `MetaClip2Model`, `SiglipModel` and others whose towers `kinds` knows.

    They keep its names: `vision_model`, `text_model`, `self_attn`.
    """

    name = "Hugging Face"
    looked_for = "vision_model.encoder.layers and text_model.encoder.layers"

    def matches(self, model: Any) -> bool:
        return all(at(model, [path]) for path in (hugging_face.IMAGE_BLOCKS, hugging_face.TEXT_BLOCKS))

    def unsupported(self, model: Any) -> list[str]:
        return kinds.unsupported(model)

    def towers(self, model: Any) -> dict[str, Tower]:
        return {
            "image": hugging_face.HuggingFaceImage("image", hugging_face.IMAGE_BLOCKS),
            "text": hugging_face.HuggingFaceText("text", hugging_face.TEXT_BLOCKS),
        }


class OpenClip(Recipe):
    """`open_clip.CLIP`, `CustomTextCLIP`, `CoCa`, with `audio` perhaps; towers are open_clip's own, or others'."""

    name = "open_clip"
    looked_for = "visual.transformer.resblocks and transformer.resblocks (or text.transformer.resblocks)"

    def matches(self, model: Any) -> bool:
        return hasattr(model, "visual") and hasattr(model, "encode_image") and hasattr(model, "encode_text")

    def unsupported(self, model: Any) -> list[str]:
        return []

    def towers(self, model: Any) -> dict[str, Tower]:
        text = at(model, open_clip.TEXT_BLOCKS)
        return {
            "image": self.image(model),
            "text": open_clip.OpenClipText("text", text) if text else text_encoder.of_open_clip(model),
            **({"audio": spectrogram.OpenClipAudio("audio", audio)} if (audio := at(model, AUDIO_BLOCKS)) else {}),
        }

    def image(self, model: Any) -> Tower:
        """The image tower: open_clip's own transformer, its ResNet, timm's model, or one that is not known."""
        if path := at(model, open_clip.IMAGE_BLOCKS):
            return open_clip.OpenClipImage("image", path)
        if all(descend(model, f"{resnet.POOL}.{name}") is not None for name in resnet.NAMES.values()):
            return resnet.ResNetImage("image", resnet.POOL)
        if descend(model, timm.TRUNK) is not None:
            return timm.image_tower("image", model)
        return open_clip.OtherImage("image")


class Encoders(Recipe):
    """The classes of `transformers` with two towers of which one at least is not CLIP's: `two_towers.MODELS`."""

    name = "transformers"
    looked_for = f"two encoders of a model of type {', '.join(two_towers.MODELS)}"

    def matches(self, model: Any) -> bool:
        return two_towers.matches(model)

    def unsupported(self, model: Any) -> list[str]:
        return two_towers.unsupported(model)

    def towers(self, model: Any) -> dict[str, Tower]:
        return two_towers.towers(model)


class Single(Recipe):
    """The classes of `transformers` that are one tower."""

    name = "transformers, one tower"
    looked_for = f"a {', '.join((*single.IMAGES, *single.MASKED_TEXTS, *single.TEXTS))}"

    def matches(self, model: Any) -> bool:
        return single.matches(model)

    def unsupported(self, model: Any) -> list[str]:
        return single.unsupported(model)

    def towers(self, model: Any) -> dict[str, Tower]:
        return single.towers(model)


class SingleStream(Recipe):
    """The classes of `transformers` in which text and image tokens go through the same blocks."""

    name = "transformers, single stream"
    looked_for = "ViLT, or a decoder language_model.layers whose configuration has an image_token_id"

    def matches(self, model: Any) -> bool:
        return single_stream.matches(model)

    def unsupported(self, model: Any) -> list[str]:
        return []

    def towers(self, model: Any) -> dict[str, Tower]:
        return single_stream.towers(model)


# The first that matches is taken.
RECIPES: tuple[Recipe, ...] = (Own(), Encoders(), HuggingFace(), OpenClip(), Single(), SingleStream())


def at(model: Any, paths: Iterable[str]) -> str:
    """The first of some dotted paths at which a list of blocks stands; "" when there is none."""
    return next((path for path in paths if isinstance(descend(model, path), nn.ModuleList)), "")
