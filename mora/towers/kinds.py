"""How the towers of Hugging Face models embed: where they are pooled, what their processors make of white and of "".

A tower is known by its configuration's `model_type`, or that of a class the configuration derives from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)

# Tokens of CLIP's own vocabulary; the last two begin and end a text, whatever was added behind them.
CLIP_VOCABULARY = 49408
LEGACY_END = 2  # `eos_token_id` in OpenAI's configurations, which predate their token ids
# SigLIP 2 of fixed resolution is a `SiglipModel` on Gemma's vocabulary: <pad> 0, <eos> 1.
GEMMA_VOCABULARY, GEMMA_FRAME = 256000, (1, 0)
UNSET_END = 49407  # what `SiglipTextConfig` says when nobody set it: no SigLIP tokenizer has such an end token


@dataclass(frozen=True)
class ImageKind:
    """An image tower: the channel statistics of its processor, and whether a head attends to every token to pool."""

    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    attends: bool = False


@dataclass(frozen=True)
class TextKind:
    """A text tower: pooled at the "first" end token, the "highest" token id, or the "last" position.

    `legacy`: at the highest id where the configuration says that the end token is 2. Attention is causal but where a
    tower is pooled at the last position.
    """

    pool: str = "first"
    legacy: bool = False


IMAGES = {
    "clip_vision_model": ImageKind(),
    "metaclip_2_vision_model": ImageKind(),
    "clipseg_vision_model": ImageKind(IMAGENET_MEAN, IMAGENET_STD),
    "owlvit_vision_model": ImageKind(),
    "owlv2_vision_model": ImageKind(),
    "siglip_vision_model": ImageKind(HALF, HALF, attends=True),
    "altclip_vision_model": ImageKind(),
    "chinese_clip_vision_model": ImageKind(),
}
TEXTS = {
    "clip_text_model": TextKind(legacy=True),
    "metaclip_2_text_model": TextKind(),
    "clipseg_text_model": TextKind(legacy=True),
    "owlvit_text_model": TextKind("highest"),
    "owlv2_text_model": TextKind("highest"),
    "siglip_text_model": TextKind("last"),
    "siglip2_text_model": TextKind("last"),
    "groupvit_text_model": TextKind(legacy=True),
    "xclip_text_model": TextKind(legacy=True),
}


def model_types(config: Any) -> list[str]:
    """The `model_type` of a configuration and of the classes it derives from."""
    own = [getattr(config, "model_type", ""), *(vars(c).get("model_type", "") for c in type(config).__mro__)]
    return [str(name) for name in dict.fromkeys(own) if name]


def image_kind(model: Any) -> ImageKind:
    """The kind of a model's image tower; StopIteration when it is not known, which `unsupported` says first."""
    return next(IMAGES[name] for name in model_types(model.vision_model.config) if name in IMAGES)


def text_kind(model: Any) -> TextKind:
    """The kind of a model's text tower; StopIteration when it is not known, which `unsupported` says first."""
    return next(TEXTS[name] for name in model_types(model.text_model.config) if name in TEXTS)


def text_pool(model: Any) -> str:
    """Where the text tower is pooled: "first", "highest" or "last"."""
    kind = text_kind(model)
    return "highest" if kind.legacy and end_token(model) == LEGACY_END else kind.pool


def end_token(model: Any) -> Any:
    """The end token that the text tower looks for; not the tokenizer's where the configuration is a legacy one."""
    return getattr(model.text_model, "eos_token_id", model.text_model.config.eos_token_id)


def text_frame(model: Any) -> tuple[int, int, int] | None:
    """(begin, end, padding) of the tokenizer's texts; None where no token says where a text ends.

    Raises ValueError when the configuration does not say how a text begins.
    """
    config, end, pool = model.text_model.config, end_token(model), text_pool(model)
    size, begin, pad = config.vocab_size, config.bos_token_id, config.pad_token_id
    if pool == "last":
        return None
    if pool == "highest" and not (end != LEGACY_END and is_token(end, size) and is_token(begin, size)):
        known = min(size, CLIP_VOCABULARY)
        return known - 2, known - 1, known - 1
    if not is_token(begin, size):
        raise ValueError(
            f"empty_text: got None for a model whose bos_token_id is {begin!r}, expected the token ids of an empty text"
        )
    return begin, end, end if text_kind(model).legacy or not is_token(pad, size) else pad


def empty_tokens(model: Any) -> list[int]:
    """The token ids of "", without the padding that repeats the last of them."""
    frame = text_frame(model)
    if frame is not None:
        return [*frame]
    config = model.text_model.config
    end, pad = config.eos_token_id, config.pad_token_id
    if end == UNSET_END:
        end, pad = GEMMA_FRAME if config.vocab_size == GEMMA_VOCABULARY else (pad, pad)
    if not (is_token(end, config.vocab_size) and is_token(pad, config.vocab_size)):
        raise ValueError(
            f"empty_text: got None for a model whose eos_token_id is {end!r} and pad_token_id {pad!r}, expected the "
            "token ids of an empty text"
        )
    return [end, pad]


def empty_text(model: Any) -> Tensor:
    """Token ids of "", [L] int64, the last of them repeated; ValueError where the configuration does not say which."""
    tokens, length = empty_tokens(model), model.text_model.config.max_position_embeddings
    return torch.tensor([*tokens, *[tokens[-1]] * length][:length])


def is_token(given: Any, size: int) -> bool:
    """Whether `given` is a token id of a vocabulary of `size`."""
    return isinstance(given, int) and not isinstance(given, bool) and 0 <= given < size


def unsupported(model: Any) -> list[str]:
    """Why a model with a Hugging Face CLIP's names cannot be adapted, a reason each; empty when it can."""
    reasons = []
    for modality, tower, table in (("image", model.vision_model, IMAGES), ("text", model.text_model, TEXTS)):
        types = model_types(getattr(tower, "config", None))
        if not any(name in table for name in types):
            found = repr(types[0]) if types else f"a {type(tower).__name__} without a configuration"
            reasons.append(f"its {modality} tower is {found}, expected one of {', '.join(map(repr, table))}")
    features = [
        name for name in ("get_image_features", "get_text_features") if not callable(getattr(model, name, None))
    ]
    reasons += [f"it has no {name}" for name in features]
    return reasons or misfits(model)


def misfits(model: Any) -> list[str]:
    """Why a model of known towers cannot be adapted: settings under which it does not embed."""
    return image_misfits(model) + text_misfits(model)


def image_misfits(model: Any) -> list[str]:
    """The same of its image tower."""
    if image_kind(model).attends and not getattr(model.vision_model, "use_head", True):
        return ["its image tower has no pooling head (vision_use_head=False)"]
    return []


def text_misfits(model: Any) -> list[str]:
    """The same of its text tower."""
    size, end = model.text_model.config.vocab_size, end_token(model)
    if text_pool(model) == "first" and not is_token(end, size):
        return [f"its eos_token_id is {end!r}, expected a token of its vocabulary of {size}: texts are pooled there"]
    return []


def pooled_positions(model: Any, text: Tensor) -> Tensor:
    """Where each text [B, L] is pooled that is pooled at a token of its own, int64 [B]."""
    at_end = text if text_pool(model) == "highest" else (text == end_token(model)).int()
    return at_end.argmax(dim=-1)
