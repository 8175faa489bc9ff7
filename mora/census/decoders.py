"""Decoders of transformers that read image tokens, with two blocks, few channels and random weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

IMAGE, VIDEO = 69, 68  # token ids
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 70,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
CLIP, SIGLIP = ({**VISION, "model_type": f"{name}_vision_model"} for name in ("clip", "siglip"))
PIXTRAL = {**VISION, "model_type": "pixtral", "head_dim": 8}
QWEN = {
    "depth": 2,
    "hidden_size": 16,
    "embed_dim": 16,
    "intermediate_size": 32,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 32,
    "in_channels": 3,
    "spatial_merge_size": 2,
    "fullatt_block_indexes": [1],
}
QWEN_3 = {**QWEN, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
ROTARY = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
MARKS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": 67, "vision_end_token_id": 66}
INDEX = {"image_token_index": IMAGE}


def decoder(kind: str, text: dict[str, Any], vision: dict[str, Any], options: dict[str, Any]) -> nn.Module:
    """The model with a head of language of a kind; `text` adds to what all have."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(text_config={**TEXT, **text}, vision_config=vision, **options)
    model: nn.Module = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    return model.eval()


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "Llava": ({"model_type": "llama"}, CLIP, INDEX),
    "LlavaNext": ({"model_type": "llama"}, CLIP, INDEX),
    "LlavaOnevision": ({"model_type": "qwen2"}, SIGLIP, {**INDEX, "video_token_index": VIDEO}),
    "VipLlava": ({"model_type": "llama"}, CLIP, INDEX),
    "PaliGemma": ({"model_type": "gemma", "head_dim": 8}, SIGLIP, {**INDEX, "projection_dim": 32}),
    "Gemma3": ({"head_dim": 8}, SIGLIP, {**INDEX, "mm_tokens_per_image": 4}),
    "InternVL": (
        {"model_type": "qwen2"},
        {**VISION, "image_size": [16, 16], "patch_size": [8, 8]},
        {"image_token_id": IMAGE},
    ),
    "Mistral3": ({"model_type": "mistral", "head_dim": 8}, PIXTRAL, INDEX),
    "Idefics3": ({"model_type": "llama"}, VISION, {"image_token_id": IMAGE, "scale_factor": 2}),
    "SmolVLM": ({"model_type": "llama"}, VISION, {"image_token_id": IMAGE, "scale_factor": 2}),
    "Qwen2VL": (ROTARY, QWEN, MARKS),
    "Qwen2_5_VL": (ROTARY, QWEN, MARKS),
    "Qwen3VL": ({**ROTARY, "head_dim": 8}, QWEN_3, MARKS),
    "AyaVision": ({"model_type": "cohere2"}, SIGLIP, INDEX),
    "Glm4v": (ROTARY, QWEN, MARKS),
}
DECODERS: dict[str, Callable[[], nn.Module]] = {
    f"{kind}ForConditionalGeneration": partial(decoder, kind, *given) for kind, given in KINDS.items()
}
