"""Which towers the classes of `transformers` have that are made of two encoders, each cut or run whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mora.towers import encoders, hugging_face, kinds
from mora.towers.tower import Tower, descend

# Classes of which somebody looked at how they embed, by the `model_type` of their configuration.
MODELS = (
    "align",
    "altclip",
    "blip",
    "chinese_clip",
    "clap",
    "flava",
    "groupvit",
    "siglip2",
    "vision-text-dual-encoder",
    "xclip",
)
# (modality, the encoder's name in the model, the method that embeds), in the order of embeddings.
PARTS = (
    ("image", "vision_model", "get_image_features"),
    ("image", "image_model", "get_image_features"),
    ("video", "vision_model", "get_video_features"),
    ("audio", "audio_model", "get_audio_features"),
    ("text", "text_model", "get_text_features"),
)


def parts(model: Any) -> dict[str, str]:
    """The encoders of a model of known class by modality; {} for others."""
    if not any(name in MODELS for name in kinds.model_types(getattr(model, "config", None))):
        return {}
    return {
        modality: root
        for modality, root, method in PARTS
        if descend(model, root) is not None and callable(getattr(model, method, None))
    }


def matches(model: Any) -> bool:
    """Whether `model` is one of these classes; those of two towers that can both be cut are CLIP's kin."""
    return "text" in (found := parts(model)) and not all(cut(model, *part) for part in found.items())


def cut(model: Any, modality: str, root: str) -> bool:
    """Whether an encoder is CLIP's or like it, so that its tower can be cut in two."""
    types = kinds.model_types(getattr(descend(model, root), "config", None))
    if modality == "image":
        return descend(model, hugging_face.IMAGE_BLOCKS) is not None and any(name in kinds.IMAGES for name in types)
    if modality == "text":
        return descend(model, hugging_face.TEXT_BLOCKS) is not None and any(name in kinds.TEXTS for name in types)
    return False


def unsupported(model: Any) -> list[str]:
    """Why a model of these classes cannot be used, a reason each."""
    reasons = []
    for modality, root in parts(model).items():
        encoder = descend(model, root)
        if cut(model, modality, root):
            reasons += kinds.image_misfits(model) if modality == "image" else kinds.text_misfits(model)
            continue
        if (
            "vision-text-dual-encoder" in kinds.model_types(model.config)
            and getattr(encoder, "pooler", encoder) is None
        ):
            reasons.append(f"its {modality} tower, a {type(encoder).__name__}, has no pooler (add_pooling_layer=False)")
        if getattr(encoder, "use_head", True) is False:
            reasons.append(f"its {modality} tower has no pooling head (vision_use_head=False)")
    return reasons


def towers(model: Any) -> dict[str, Tower]:
    """The towers of a model that `matches`, by modality."""
    return {modality: tower(model, modality, root) for modality, root in parts(model).items()}


def tower(model: Any, modality: str, root: str) -> Tower:
    """The tower of one encoder."""
    if cut(model, modality, root):
        if modality == "image":
            return hugging_face.HuggingFaceImage(modality, hugging_face.IMAGE_BLOCKS)
        return hugging_face.HuggingFaceText(modality, hugging_face.TEXT_BLOCKS)
    if "siglip2_vision_model" in kinds.model_types(descend(model, root).config):
        return encoders.NaflexImage(modality, root)
    whole: dict[str, Callable[[str, str], Tower]] = {
        "image": encoders.EncoderImage,
        "video": encoders.EncoderVideo,
        "audio": encoders.EncoderAudio,
        "text": encoders.HuggingFaceEncoderText,
    }
    return whole[modality](modality, root)
