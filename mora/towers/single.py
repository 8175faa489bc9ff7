"""Classes of `transformers` that are one tower: its embedding is what the class itself pools or projects."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

from torch import Tensor

from mora.towers import kinds
from mora.towers.encoders import EncoderImage
from mora.towers.inputs import TokenInputs
from mora.towers.slots import Slot
from mora.towers.stacks import stack_of
from mora.towers.text_encoder import EncoderText
from mora.towers.tower import Tower

IMAGES = (
    "CLIPVisionModel",
    "CLIPVisionModelWithProjection",
    "Dinov2Model",
    "Dinov2WithRegistersModel",
    "MetaClip2VisionModel",
    "MetaClip2VisionModelWithProjection",
    "SiglipVisionModel",
    "ViTModel",
)
MASKED_TEXTS = ("BertModel", "CamembertModel", "RobertaModel", "XLMRobertaModel")
TEXTS = (
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "MetaClip2TextModel",
    "MetaClip2TextModelWithProjection",
    "SiglipTextModel",
)


def embedded(output: Any) -> Tensor:
    """What a class projects, else what it pools."""
    for name in ("image_embeds", "text_embeds", "pooler_output"):
        found = getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    raise ValueError(f"model: got a {type(output).__name__} without an embedding, expected one with a pooler_output")


@dataclass(frozen=True)
class SingleImage(EncoderImage):
    """An image model, called with `pixel_values`."""

    kind: ClassVar[str] = "transformers image model"

    def encode(self, model: Any, inputs: Tensor) -> Tensor:
        return embedded(model(pixel_values=inputs))


@dataclass(frozen=True)
class SingleMaskedText(EncoderText):
    """A text model whose padding is masked, called with `input_ids` and `attention_mask`."""

    kind: ClassVar[str] = "transformers text model, masked"

    def encode(self, model: Any, inputs: Tensor) -> Tensor:
        return embedded(model(input_ids=inputs, attention_mask=self.mask(model, inputs)))

    def width(self, model: Any) -> int:
        return int(model.config.hidden_size)


@dataclass(frozen=True)
class SingleText(TokenInputs):
    """The text tower of a CLIP or a SigLIP, called with `input_ids`."""

    kind: ClassVar[str] = "transformers text model"

    def slots(self, model: Any) -> list[Slot]:
        return stack_of(model, "").slots(self.modality, model, "")

    def encode(self, model: Any, inputs: Tensor) -> Tensor:
        return embedded(model(input_ids=inputs))

    def width(self, model: Any) -> int:
        last = getattr(model, "text_projection", None) or getattr(model, "head", None)
        return int(model.config.hidden_size if last is None else last.out_features)

    def substitute(self, model: Any) -> Tensor:
        """Token ids of "", [L] int64; ValueError where the configuration does not say what they are."""
        return kinds.empty_text(around(model))

    def frame(self, model: Any) -> tuple[int, int, int] | None:
        return kinds.text_frame(around(model))

    def vocabulary(self, model: Any) -> tuple[int, int]:
        return model.config.vocab_size, model.config.max_position_embeddings


def around(model: Any) -> Any:
    """Something with the names of a CLIP, which hold a text tower."""
    return model if hasattr(model, "text_model") else SimpleNamespace(text_model=model)


def class_names(model: Any) -> list[str]:
    """Of a model, and of what it derives from."""
    return [kind.__name__ for kind in type(model).__mro__ if kind.__module__.startswith("transformers.")]


def matches(model: Any) -> bool:
    """Whether `model` is one of these classes."""
    names = class_names(model)
    return any(name in names for name in (*IMAGES, *MASKED_TEXTS, *TEXTS))


def unsupported(model: Any) -> list[str]:
    """Why one of these cannot be used, a reason each."""
    if getattr(model, "pooler", model) is None:
        return ["it has no pooler (add_pooling_layer=False)"]
    if any(getattr(part, "use_head", True) is False for part in (model, getattr(model, "vision_model", None))):
        return ["it has no pooling head (vision_use_head=False)"]
    return kinds.text_misfits(around(model)) if any(name in TEXTS for name in class_names(model)) else []


def towers(model: Any) -> dict[str, Tower]:
    """The one tower of a model that `matches`, by its modality."""
    names = class_names(model)
    if any(name in IMAGES for name in names):
        return {"image": SingleImage("image", "")}
    return {"text": SingleText("text") if any(name in TEXTS for name in names) else SingleMaskedText("text", "")}
