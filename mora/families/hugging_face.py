"""Hugging Face `CLIPModel` and its kin: one `nn.Linear` per projection, configurations on the towers."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mora.families import kinds
from mora.families.family import Family, alone, block_sites, descend, pick, text_needed
from mora.families.processor import normalisation
from mora.families.site import SeparateSite, Site
from mora.savings.feed_forward import feed_forward

BLOCKS = {"image": "vision_model.encoder.layers", "text": "text_model.encoder.layers"}


class HuggingFace(Family):
    """`transformers.CLIPModel`, `MetaClip2Model`, `SiglipModel` and others whose towers `kinds` knows.

    They keep its names: `vision_model`, `text_model`, `self_attn`.
    """

    name = "Hugging Face"
    looked_for = "vision_model.encoder.layers and text_model.encoder.layers"

    def matches(self, model: Any) -> bool:
        return all(isinstance(descend(model, path), nn.ModuleList) for path in BLOCKS.values())

    def unsupported(self, model: Any) -> list[str]:
        return kinds.unsupported(model)

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
        projection = getattr(model, "text_projection", None)
        return int((model.text_model.head if projection is None else projection).out_features)

    def image_size(self, model: Any) -> tuple[int, int]:
        size = model.vision_model.config.image_size
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    def normalisation(self, model: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        kind = kinds.image_kind(model)
        return normalisation(model, model.vision_model) or (kind.mean, kind.std)

    def empty_text(self, model: Any) -> Tensor:
        tokens, length = kinds.empty_tokens(model), model.text_model.config.max_position_embeddings
        return torch.tensor([*tokens, *[tokens[-1]] * length][:length])

    def text_frame(self, model: Any) -> tuple[int, int, int] | None:
        return kinds.text_frame(model)

    def vocabulary(self, model: Any) -> tuple[int, int]:
        config = model.text_model.config
        return config.vocab_size, config.max_position_embeddings

    def block_arguments(self, model: Any, modality: str, hidden: Tensor) -> dict[str, Any]:
        if modality == "image" or kinds.text_pool(model) == "last":
            return {"attention_mask": None}
        from transformers.masking_utils import create_causal_mask

        # Renamed between releases of transformers 5.
        cache = "cache" if "cache" in signature(create_causal_mask).parameters else "past_key_values"
        config = model.text_model.config
        mask = create_causal_mask(config=config, inputs_embeds=hidden, attention_mask=None, **{cache: None})
        return {"attention_mask": mask, "is_causal": True}

    def pooled_rows(self, model: Any, modality: str, hidden: Tensor, text: Tensor | None) -> Tensor | None:
        first = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
        if modality == "image":
            return None if kinds.image_kind(model).attends else first
        if kinds.text_pool(model) == "last":
            return first + hidden.shape[1] - 1
        if text is None:
            raise text_needed("end token")
        return kinds.pooled_positions(model, text)

    def run_block(self, model: Any, modality: str, block: Any, hidden: Tensor, arguments: Any, lean: bool) -> Tensor:
        checkpointed = getattr(block, "gradient_checkpointing", False)
        trained = any(parameter.requires_grad for parameter in block.parameters())
        if checkpointed and trained and torch.is_grad_enabled() and not hidden.requires_grad:
            # Reentrant checkpointing gives no gradient to a block whose input asks for none.
            hidden = hidden.detach().requires_grad_()
        if not lean or not torch.is_grad_enabled() or checkpointed:
            return block(hidden, **arguments)
        attended, _ = block.self_attn(hidden_states=block.layer_norm1(hidden), **arguments)
        hidden = hidden + attended
        normed = block.layer_norm2(hidden)
        wide = feed_forward(block.mlp.fc1, block.mlp.activation_fn, block.mlp.fc2, normed)
        return hidden + (block.mlp(normed) if wide is None else wide)

    def needs_all_tokens(self, model: Any, modality: str) -> str:
        attends = modality == "image" and kinds.image_kind(model).attends
        return "pooled by attention, which reads every token" if attends else ""

    def needs_full_texts(self, model: Any) -> str:
        return "attention is not causal: every token reads the padding" if kinds.text_pool(model) == "last" else ""

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
            tower, attends = model.vision_model, kinds.image_kind(model).attends
            embedded = tower.post_layernorm(hidden if attends else hidden[:, 0])
            embedded, projection = tower.head(embedded) if attends else embedded, "visual_projection"
        else:
            tower, projection = model.text_model, "text_projection"
            embedded = tower.final_layer_norm(hidden)
            embedded = embedded if rows is None else pick(embedded, rows)
            embedded = tower.head(embedded) if kinds.text_pool(model) == "last" else embedded
        layer = getattr(model, projection, None)
        return embedded if layer is None else layer(embedded)


def pooled(output: object) -> Tensor:
    """The embedding itself: transformers 5 wraps it in an output object, earlier releases return it."""
    return output if isinstance(output, Tensor) else output.pooler_output  # type: ignore[attr-defined]
