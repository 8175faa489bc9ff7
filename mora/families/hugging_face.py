"""Hugging Face `CLIPModel`: one `nn.Linear` per projection, configuration on the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mora.families.family import CLIP_MEAN, CLIP_STD, Family, block_sites, descend, white
from mora.families.site import SeparateSite, Site

BLOCKS = {"image": "vision_model.encoder.layers", "text": "text_model.encoder.layers"}


class HuggingFace(Family):
    """`transformers.CLIPModel`, and models that keep its names (`vision_model`, `text_model`, `self_attn`)."""

    name = "Hugging Face"
    looked_for = "vision_model.encoder.layers and text_model.encoder.layers"

    def matches(self, model: nn.Module) -> bool:  # noqa: D102
        return all(isinstance(descend(model, path), nn.ModuleList) for path in BLOCKS.values())

    def towers(self, model: nn.Module) -> dict[str, list[Site]]:  # noqa: D102
        return {
            modality: block_sites(
                modality, descend(model, path), "self_attn", path, SeparateSite, lambda a: hasattr(a, "q_proj")
            )
            for modality, path in BLOCKS.items()
        }

    def encode_image(self, model: nn.Module, image: Tensor) -> Tensor:  # noqa: D102
        return pooled(model.get_image_features(pixel_values=image))

    def encode_text(self, model: nn.Module, text: Tensor) -> Tensor:  # noqa: D102
        return pooled(model.get_text_features(input_ids=text))

    def embedding_size(self, model: nn.Module) -> int:  # noqa: D102
        return int(model.config.projection_dim)

    def white_image(self, model: nn.Module) -> Tensor:  # noqa: D102
        size = model.config.vision_config.image_size
        return white((size, size), CLIP_MEAN, CLIP_STD)

    def empty_text(self, model: nn.Module) -> Tensor:  # noqa: D102
        config = model.config.text_config
        begin, end = config.bos_token_id, config.eos_token_id
        if end is None or end == 2:  # the configuration of OpenAI's own checkpoints predates their token ids
            begin, end = config.vocab_size - 2, config.vocab_size - 1
        tokens = torch.full((config.max_position_embeddings,), end, dtype=torch.int64)
        tokens[0] = begin
        return tokens

    def vocabulary(self, model: nn.Module) -> tuple[int, int]:  # noqa: D102
        return model.config.text_config.vocab_size, model.config.text_config.max_position_embeddings


def pooled(output: object) -> Tensor:
    """The embedding itself: transformers 5 wraps it in an output object, earlier releases return it."""
    return output if isinstance(output, Tensor) else output.pooler_output  # type: ignore[attr-defined]
