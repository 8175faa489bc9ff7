"""open_clip models: released blocks on `nn.MultiheadAttention`, newer ones on its own `Attention`; q, k, v packed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mora.families.family import CLIP_MEAN, CLIP_STD, Family, block_sites, descend, white
from mora.families.site import PackedSite, Site

IMAGE_BLOCKS = ("visual.transformer.resblocks",)
TEXT_BLOCKS = ("transformer.resblocks", "text.transformer.resblocks")


class OpenClip(Family):
    """`open_clip.CLIP`, `CustomTextCLIP` and `CoCa` whose towers are open_clip's own transformers."""

    name = "open_clip"
    looked_for = "visual.transformer.resblocks and transformer.resblocks (or text.transformer.resblocks)"

    def matches(self, model: nn.Module) -> bool:  # noqa: D102
        return hasattr(model, "visual") and hasattr(model, "encode_image") and hasattr(model, "encode_text")

    def towers(self, model: nn.Module) -> dict[str, list[Site]]:  # noqa: D102
        towers: dict[str, list[Site]] = {}
        for modality, paths in (("image", IMAGE_BLOCKS), ("text", TEXT_BLOCKS)):
            found = [(path, blocks) for path in paths if isinstance(blocks := descend(model, path), nn.ModuleList)]
            if not found:
                root = model.visual if modality == "image" else getattr(model, "text", model)
                raise ValueError(
                    f"model: looked for the {modality} tower's blocks at {' or '.join(paths)}, found a "
                    f"{type(root).__name__} without them: only open_clip's own transformer towers can be adapted"
                )
            path, blocks = found[0]
            towers[modality] = block_sites(
                modality, blocks, "attn", path, PackedSite, lambda attention: hasattr(attention, "in_proj_weight")
            )
        return towers

    def encode_image(self, model: nn.Module, image: Tensor) -> Tensor:  # noqa: D102
        return model.encode_image(image)

    def encode_text(self, model: nn.Module, text: Tensor) -> Tensor:  # noqa: D102
        return model.encode_text(text)

    def embedding_size(self, model: nn.Module) -> int:  # noqa: D102
        return int(model.visual.output_dim)

    def white_image(self, model: nn.Module) -> Tensor:  # noqa: D102
        size = model.visual.image_size
        mean = getattr(model.visual, "image_mean", None) or CLIP_MEAN
        std = getattr(model.visual, "image_std", None) or CLIP_STD
        return white(tuple(size) if isinstance(size, (tuple, list)) else (size, size), tuple(mean), tuple(std))

    def empty_text(self, model: nn.Module) -> Tensor:  # noqa: D102
        pool = getattr(model, "text_pool_type", None) or getattr(text_tower(model), "pool_type", "argmax")
        if pool != "argmax":
            raise ValueError(f"empty_text: got None for a text tower pooled by {pool!r}, expected tokenizer([''])[0]")
        size, length = self.vocabulary(model)
        tokens = torch.zeros(length, dtype=torch.int64)
        tokens[0], tokens[1] = size - 2, size - 1
        return tokens

    def vocabulary(self, model: nn.Module) -> tuple[int, int]:  # noqa: D102
        tower = text_tower(model)
        return tower.token_embedding.num_embeddings, tower.positional_embedding.shape[0] - class_tokens(tower)


def text_tower(model: nn.Module) -> nn.Module:
    """The module that holds the text embeddings: the model itself for `CLIP`, else its `text`."""
    return model if hasattr(model, "token_embedding") else model.text


def class_tokens(tower: nn.Module) -> int:
    """How many positions the tower itself appends to a text (CoCa's class token)."""
    return int(getattr(tower, "cls_emb", None) is not None)
