"""Hugging Face `CLIPModel`: one `nn.Linear` per projection, configuration on the model."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mora.families.family import CLIP_MEAN, CLIP_STD, Family, alone, block_sites, descend, pick, text_needed, white
from mora.families.site import SeparateSite, Site
from mora.savings.feed_forward import feed_forward

BLOCKS = {"image": "vision_model.encoder.layers", "text": "text_model.encoder.layers"}


class HuggingFace(Family):
    """`transformers.CLIPModel`, and models that keep its names (`vision_model`, `text_model`, `self_attn`)."""

    name = "Hugging Face"
    looked_for = "vision_model.encoder.layers and text_model.encoder.layers"

    def matches(self, model: Any) -> bool:
        return all(isinstance(descend(model, path), nn.ModuleList) for path in BLOCKS.values())

    def towers(self, model: Any) -> dict[str, list[Site]]:
        return {
            modality: block_sites(
                modality, model.get_submodule(path), "self_attn", path, SeparateSite, lambda a: hasattr(a, "q_proj")
            )
            for modality, path in BLOCKS.items()
        }

    def encode_image(self, model: Any, image: Tensor) -> Tensor:
        return pooled(model.get_image_features(pixel_values=image))

    def encode_text(self, model: Any, text: Tensor) -> Tensor:
        return pooled(model.get_text_features(input_ids=text))

    def embedding_size(self, model: Any) -> int:
        return int(model.config.projection_dim)

    def white_image(self, model: Any) -> Tensor:
        size = model.config.vision_config.image_size
        return white((size, size), CLIP_MEAN, CLIP_STD)

    def empty_text(self, model: Any) -> Tensor:
        config = model.config.text_config
        begin, end = config.bos_token_id, config.eos_token_id
        if end is None or end == 2:  # the configuration of OpenAI's own checkpoints predates their token ids
            begin, end = config.vocab_size - 2, config.vocab_size - 1
        tokens = torch.full((config.max_position_embeddings,), end, dtype=torch.int64)
        tokens[0] = begin
        return tokens

    def vocabulary(self, model: Any) -> tuple[int, int]:
        return model.config.text_config.vocab_size, model.config.text_config.max_position_embeddings

    def block_arguments(self, model: Any, modality: str, hidden: Tensor) -> dict[str, Any]:
        if modality == "image":
            return {"attention_mask": None}
        from transformers.masking_utils import create_causal_mask

        # Renamed between releases of transformers 5.
        cache = "cache" if "cache" in signature(create_causal_mask).parameters else "past_key_values"
        config = model.text_model.config
        mask = create_causal_mask(config=config, inputs_embeds=hidden, attention_mask=None, **{cache: None})
        return {"attention_mask": mask, "is_causal": True}

    def pooled_rows(self, model: Any, modality: str, hidden: Tensor, text: Tensor | None) -> Tensor | None:
        if modality == "image":
            return torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
        if text is None:
            raise text_needed("end token")
        end = model.text_model.eos_token_id
        return text.argmax(dim=-1) if end == 2 else (text == end).int().argmax(dim=-1)

    def run_block(self, model: Any, modality: str, block: Any, hidden: Tensor, arguments: Any, lean: bool) -> Tensor:
        if not lean or not torch.is_grad_enabled() or getattr(block, "gradient_checkpointing", False):
            return block(hidden, **arguments)
        attended, _ = block.self_attn(hidden_states=block.layer_norm1(hidden), **arguments)
        hidden = hidden + attended
        normed = block.layer_norm2(hidden)
        wide = feed_forward(block.mlp.fc1, block.mlp.activation_fn, block.mlp.fc2, normed)
        return hidden + (block.mlp(normed) if wide is None else wide)

    def needs_all_tokens(self, model: Any, modality: str) -> str:
        return ""

    def needs_full_texts(self, model: Any) -> str:
        return ""

    def text_ends(self, model: Any, text: Tensor) -> Tensor:
        rows = self.pooled_rows(model, "text", text, text)
        assert rows is not None
        return rows

    def pooled_block(self, block: Any, hidden: Tensor, rows: Tensor, arguments: dict[str, Any]) -> Tensor | None:
        attention = block.self_attn
        normed = block.layer_norm1(hidden)
        projected = (
            alone(attention.q_proj, pick(normed, rows)[:, None]),
            alone(attention.k_proj, normed),
            alone(attention.v_proj, normed),
        )
        q, k, v = (x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in projected)
        visible = None
        if arguments.get("is_causal"):
            visible = (torch.arange(hidden.shape[1], device=hidden.device) <= rows[:, None])[:, None, None]
        dropout = attention.dropout if attention.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, visible, dropout, scale=attention.scale)
        x = pick(hidden, rows)[:, None] + attention.out_proj(attended.transpose(1, 2).flatten(2))
        return x + block.mlp(block.layer_norm2(x))

    def project(self, model: Any, modality: str, hidden: Tensor, rows: Tensor | None) -> Tensor:
        if modality == "image":
            return model.visual_projection(model.vision_model.post_layernorm(hidden[:, 0]))
        hidden = model.text_model.final_layer_norm(hidden)
        return model.text_projection(hidden if rows is None else pick(hidden, rows))


def pooled(output: object) -> Tensor:
    """The embedding itself: transformers 5 wraps it in an output object, earlier releases return it."""
    return output if isinstance(output, Tensor) else output.pooler_output  # type: ignore[attr-defined]
