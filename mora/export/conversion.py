"""A plain open_clip CLIP as a Hugging Face `CLIPModel`: the same weights under the other library's names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mora.system.machine import need
from mora.towers.open_clip import class_tokens, text_pool, text_tower

BLOCK = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
BLOCK_TYPE, ATTENTION_TYPE = "ResidualAttentionBlock", "MultiheadAttention"


def to_hugging_face(model: Any) -> Any:
    """Return a `transformers.CLIPModel` in eval mode that embeds as `model` does, up to rounding; weights are copied.

    Args:
        model: an unpatched open_clip `CLIP`, or `CustomTextCLIP` whose text tower is the same transformer: class-token
            image tower, causal text tower pooled at its end token.

    Raises:
        ValueError: the model has a part that `CLIPModel` has no place for; the message names every one.
        ImportError: transformers is not installed.
    """
    need("transformers", "format: a Hugging Face model")
    from transformers import CLIPConfig, CLIPModel

    if reasons := unsupported(model):
        raise ValueError(f"format: this model has no Hugging Face CLIPModel form: {'; '.join(reasons)}")
    made = CLIPModel(CLIPConfig(**configuration(model)))
    made.load_state_dict(renamed(model))
    return made.to(next(model.parameters()).dtype).eval()


def unsupported(model: Any) -> list[str]:
    """Why `model` cannot become a `CLIPModel`, a reason each; empty when it can."""
    visual, text = model.visual, text_tower(model)
    if not hasattr(getattr(visual, "transformer", None), "resblocks"):
        return [f"its image tower is a {type(visual).__name__}"]
    if not hasattr(getattr(text, "transformer", None), "resblocks"):
        return [f"its text tower is a {type(text).__name__}"]
    blocks = [*visual.transformer.resblocks, *text.transformer.resblocks]
    kinds = {type(block).__name__ for block in blocks} | {type(block.attn).__name__ for block in blocks}
    size, patch = visual.image_size, visual.patch_size
    activations = {type(block.mlp.gelu).__name__ for block in blocks}
    found = {
        f"its blocks are {', '.join(sorted(kinds))}": kinds != {BLOCK_TYPE, ATTENTION_TYPE},
        "it has layer scales": any(list(block.ls_1.parameters()) for block in blocks),
        "its attention has no bias": any(block.attn.in_proj_bias is None for block in blocks),
        f"its activation is {', '.join(sorted(activations))}": not activations <= {"QuickGELU", "GELU"},
        "its image tower is not pooled at the class token": visual.attn_pool is not None or visual.pool_type != "tok",
        "its image tower has no first norm": not isinstance(visual.ln_pre, nn.LayerNorm),
        "its image tower has no projection": visual.proj is None,
        "its images or patches are not square": len({*size}) > 1 or len({*patch}) > 1,
        f"its text tower is pooled by {text_pool(model)!r}": text_pool(model) != "argmax",
        "its text tower has a class token": bool(class_tokens(text)),
        "its text tower is not causal": getattr(text, "attn_mask", None) is None,
        "its text projection is missing or has a bias": not isinstance(text.text_projection, (Tensor, nn.Linear))
        or getattr(text.text_projection, "bias", None) is not None,
        "it has a logit bias": getattr(model, "logit_bias", None) is not None,
    }
    return [reason for reason, holds in found.items() if holds]


def configuration(model: Any) -> dict[str, Any]:
    """The arguments of `CLIPConfig`; token ids of begin and end are the vocabulary's last two, as in CLIP."""
    visual, text = model.visual, text_tower(model)
    size, length = text.token_embedding.num_embeddings, text.positional_embedding.shape[0]
    width = visual.proj.shape[1]
    return {
        "projection_dim": width,
        "vision_config": {
            **tower(visual.transformer.resblocks),
            "image_size": visual.image_size[0],
            "patch_size": visual.patch_size[0],
            "projection_dim": width,
        },
        "text_config": {
            **tower(text.transformer.resblocks),
            "vocab_size": size,
            "max_position_embeddings": length,
            "projection_dim": width,
            "bos_token_id": size - 2,
            "eos_token_id": size - 1,
            "pad_token_id": 0,
        },
    }


def tower(blocks: Any) -> dict[str, Any]:
    """The sizes of one tower."""
    first = blocks[0]
    return {
        "hidden_size": first.attn.embed_dim,
        "intermediate_size": first.mlp.c_fc.out_features,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": first.attn.num_heads,
        "hidden_act": "quick_gelu" if type(first.mlp.gelu).__name__ == "QuickGELU" else "gelu",
        "layer_norm_eps": first.ln_1.eps,
    }


@torch.no_grad()
def renamed(model: Any) -> dict[str, Tensor]:
    """Every tensor under the name that `CLIPModel` gives it."""
    visual, text = model.visual, text_tower(model)
    projection = text.text_projection
    tensors = {
        "logit_scale": model.logit_scale.reshape(()),
        "visual_projection.weight": visual.proj.T,
        "text_projection.weight": projection.weight if isinstance(projection, nn.Linear) else projection.T,
        "vision_model.embeddings.class_embedding": visual.class_embedding,
        "vision_model.embeddings.patch_embedding.weight": visual.conv1.weight,
        "vision_model.embeddings.position_embedding.weight": visual.positional_embedding,
        "text_model.embeddings.token_embedding.weight": text.token_embedding.weight,
        "text_model.embeddings.position_embedding.weight": text.positional_embedding,
    }
    norms = {
        "vision_model.pre_layrnorm": visual.ln_pre,
        "vision_model.post_layernorm": visual.ln_post,
        "text_model.final_layer_norm": text.ln_final,
    }
    for name, norm in norms.items():
        tensors.update({f"{name}.{key}": tensor for key, tensor in norm.named_parameters()})
    for prefix, blocks in (("vision_model", visual.transformer.resblocks), ("text_model", text.transformer.resblocks)):
        for index, block in enumerate(blocks):
            tensors.update(block_tensors(f"{prefix}.encoder.layers.{index}", block))
    return tensors


def block_tensors(name: str, block: Any) -> dict[str, Tensor]:
    """One block's tensors; q, k, v unpacked."""
    tensors = {}
    for old, new in BLOCK.items():
        tensors.update({f"{name}.{new}.{key}": tensor for key, tensor in block.get_submodule(old).named_parameters()})
    for key, packed in (("weight", block.attn.in_proj_weight), ("bias", block.attn.in_proj_bias)):
        for target, part in zip("qkv", packed.chunk(3), strict=True):
            tensors[f"{name}.self_attn.{target}_proj.{key}"] = part
        tensors[f"{name}.self_attn.out_proj.{key}"] = getattr(block.attn.out_proj, key)
    return tensors
