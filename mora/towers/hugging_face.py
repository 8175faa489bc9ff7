"""Towers of `transformers.CLIPModel` and its kin: one `nn.Linear` per projection, configurations on the towers."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mora.towers import kinds
from mora.towers.cutting import CutTower, alone, pick
from mora.towers.feed_forward import feed_forward
from mora.towers.inputs import ImageInputs, TokenInputs, sides
from mora.towers.layouts import Layout, Separate
from mora.towers.processor import normalisation

IMAGE_BLOCKS, TEXT_BLOCKS = "vision_model.encoder.layers", "text_model.encoder.layers"


@dataclass(frozen=True)
class HuggingFaceTower(CutTower):
    """A stack of blocks with CLIP's names: `self_attn`, `layer_norm1`, `layer_norm2`, `mlp`."""

    layout: ClassVar[Layout] = Separate({target: f"self_attn.{target}_proj" for target in ("q", "k", "v", "out")})
    fronts: ClassVar[bool] = True

    def run_block(self, model: Any, block: Any, hidden: Tensor, arguments: Any, lean: bool) -> Tensor:
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


@dataclass(frozen=True)
class HuggingFaceImage(ImageInputs, HuggingFaceTower):
    """`vision_model`: pooled at its class token, or by a head that attends to every token."""

    kind: ClassVar[str] = "Hugging Face image"

    def encode(self, model: Any, inputs: Tensor) -> Tensor:
        return pooled(model.get_image_features(pixel_values=inputs))

    def width(self, model: Any) -> int:
        projection = getattr(model, "visual_projection", None)
        return int(model.vision_model.config.hidden_size if projection is None else projection.out_features)

    def size(self, model: Any) -> tuple[int, int]:
        return sides(model.vision_model.config.image_size)

    def statistics(self, model: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        kind = kinds.image_kind(model)
        return normalisation(model, model.vision_model) or (kind.mean, kind.std)

    def block_arguments(self, model: Any, hidden: Tensor) -> dict[str, Any]:
        return {"attention_mask": None}

    def pooled_rows(self, model: Any, hidden: Tensor, tokens: Tensor | None) -> Tensor | None:
        if kinds.image_kind(model).attends:
            return None
        return torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)

    def needs_all_tokens(self, model: Any) -> str:
        return "pooled by attention, which reads every token" if kinds.image_kind(model).attends else ""

    def project(self, model: Any, hidden: Tensor, rows: Tensor | None) -> Tensor:
        tower, attends = model.vision_model, kinds.image_kind(model).attends
        embedded = tower.post_layernorm(hidden if attends else hidden[:, 0])
        return projected_by(model, "visual_projection", tower.head(embedded) if attends else embedded)


@dataclass(frozen=True)
class HuggingFaceText(TokenInputs, HuggingFaceTower):
    """`text_model`: pooled at a token of its own or at the last position."""

    kind: ClassVar[str] = "Hugging Face text"
    trims: ClassVar[bool] = True

    def encode(self, model: Any, inputs: Tensor) -> Tensor:
        return pooled(model.get_text_features(input_ids=inputs))

    def width(self, model: Any) -> int:
        projection = getattr(model, "text_projection", None)
        head = model.text_model.head if projection is None else projection
        last: Any = head[-1] if isinstance(head, nn.Sequential) else head
        return int(last.out_features)

    def substitute(self, model: Any) -> Tensor:
        return kinds.empty_text(model)

    def frame(self, model: Any) -> tuple[int, int, int] | None:
        return kinds.text_frame(model)

    def vocabulary(self, model: Any) -> tuple[int, int]:
        config = model.text_model.config
        return config.vocab_size, config.max_position_embeddings

    def block_arguments(self, model: Any, hidden: Tensor) -> dict[str, Any]:
        if kinds.text_pool(model) == "last":
            return {"attention_mask": None}
        from transformers.masking_utils import create_causal_mask

        # Renamed between releases of transformers 5.
        cache = "cache" if "cache" in signature(create_causal_mask).parameters else "past_key_values"
        config = model.text_model.config
        mask = create_causal_mask(config=config, inputs_embeds=hidden, attention_mask=None, **{cache: None})
        return {"attention_mask": mask, "is_causal": True}

    def pooled_rows(self, model: Any, hidden: Tensor, tokens: Tensor | None) -> Tensor | None:
        if kinds.text_pool(model) == "last":
            first = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
            return first + hidden.shape[1] - 1
        if tokens is None:
            raise self.tokens_needed("end token")
        return kinds.pooled_positions(model, tokens)

    def needs_all_tokens(self, model: Any) -> str:
        return ""

    def needs_full_inputs(self, model: Any) -> str:
        return "attention is not causal: every token reads the padding" if kinds.text_pool(model) == "last" else ""

    def project(self, model: Any, hidden: Tensor, rows: Tensor | None) -> Tensor:
        tower = model.text_model
        embedded = tower.final_layer_norm(hidden)
        embedded = embedded if rows is None else pick(embedded, rows)
        embedded = tower.head(embedded) if kinds.text_pool(model) == "last" else embedded
        return projected_by(model, "text_projection", embedded)


def projected_by(model: Any, name: str, embedded: Tensor) -> Tensor:
    """What a model's own projection makes of pooled rows; the rows themselves where it has none."""
    layer = getattr(model, name, None)
    return embedded if layer is None else layer(embedded)


def pooled(output: object) -> Tensor:
    """The embedding itself: transformers 5 wraps it in an output object, earlier releases return it."""
    return output if isinstance(output, Tensor) else output.pooler_output  # type: ignore[attr-defined]
