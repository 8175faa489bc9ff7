"""open_clip models: released blocks on `nn.MultiheadAttention`, newer ones on its own `Attention`; q, k, v packed."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from mora.attention import MultiheadAttention, OpenClipAttention
from mora.families.family import Family, block_sites, descend, pick, text_needed
from mora.families.kinds import CLIP_MEAN, CLIP_STD, CLIP_VOCABULARY
from mora.families.site import PackedSite, Site
from mora.savings.feed_forward import feed_forward

IMAGE_BLOCKS = ("visual.transformer.resblocks",)
TEXT_BLOCKS = ("transformer.resblocks", "text.transformer.resblocks")


class OpenClip(Family):
    """`open_clip.CLIP`, `CustomTextCLIP` and `CoCa` whose towers are open_clip's own transformers."""

    name = "open_clip"
    looked_for = "visual.transformer.resblocks and transformer.resblocks (or text.transformer.resblocks)"

    def matches(self, model: Any) -> bool:
        return hasattr(model, "visual") and hasattr(model, "encode_image") and hasattr(model, "encode_text")

    def unsupported(self, model: Any) -> list[str]:
        return []

    def towers(self, model: Any) -> dict[str, list[Site]]:
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

    def encode_image(self, model: Any, image: Tensor) -> Tensor:
        return model.encode_image(image)

    def encode_text(self, model: Any, text: Tensor) -> Tensor:
        return model.encode_text(text)

    def embedding_size(self, model: Any) -> int:
        return int(model.visual.output_dim)

    def image_size(self, model: Any) -> tuple[int, int]:
        size = model.visual.image_size
        return (int(size[0]), int(size[1])) if isinstance(size, (tuple, list)) else (size, size)

    def normalisation(self, model: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        settings = getattr(model.visual, "preprocess_cfg", None) or {}
        found = []
        for key, otherwise in (("mean", CLIP_MEAN), ("std", CLIP_STD)):
            own = settings.get(key, getattr(model.visual, f"image_{key}", None))
            found.append(otherwise if own is None else tuple(map(float, own)))
        return found[0], found[1]

    def empty_text(self, model: Any) -> Tensor:
        pool, (size, length) = text_pool(model), self.vocabulary(model)
        if pool != "argmax":
            raise ValueError(f"empty_text: got None for a text tower pooled by {pool!r}, expected tokenizer([''])[0]")
        if size > CLIP_VOCABULARY:
            raise ValueError(
                f"empty_text: got None for a text tower of {size} tokens, more than CLIP's {CLIP_VOCABULARY}, expected "
                "tokenizer([''])[0]"
            )
        begin, end, padding = end_frame(model, size)
        tokens = torch.full((length,), padding, dtype=torch.int64)
        tokens[0], tokens[1] = begin, end
        return tokens

    def text_frame(self, model: Any) -> tuple[int, int, int] | None:
        return end_frame(model, self.vocabulary(model)[0]) if text_pool(model) in ("argmax", "eos") else None

    def vocabulary(self, model: Any) -> tuple[int, int]:
        tower = text_tower(model)
        return tower.token_embedding.num_embeddings, tower.positional_embedding.shape[0] - class_tokens(tower)

    def block_arguments(self, model: Any, modality: str, hidden: Tensor) -> dict[str, Any]:
        if modality == "image":
            return {}
        tower = text_tower(model)
        if class_tokens(tower) or getattr(tower, "use_pad_mask", False):
            raise ValueError("model: got a text tower with a class token or a padding mask, expected a causal one")
        length = hidden.shape[1]
        mask = tower.attn_mask
        return {} if mask is None else {"attn_mask": mask[:length, :length]}

    def pooled_rows(self, model: Any, modality: str, hidden: Tensor, text: Tensor | None) -> Tensor | None:
        first = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
        if modality == "image":
            visual = model.visual
            return first if visual.attn_pool is None and visual.pool_type == "tok" else None
        pool = text_pool(model)
        if pool not in ("first", "last", "argmax", "eos"):
            raise ValueError(f"model: got a text tower pooled by {pool!r}, expected one that pools a token")
        if pool in ("first", "last"):
            return first if pool == "first" else first + hidden.shape[1] - 1
        if text is None:
            raise text_needed(pool)
        return text.argmax(dim=-1) if pool == "argmax" else (text == end_token(model)).int().argmax(dim=-1)

    def needs_all_tokens(self, model: Any, modality: str) -> str:
        attention = self.towers(model)[modality][-1].attention
        if not isinstance(attention, (nn.MultiheadAttention, MultiheadAttention, OpenClipAttention)):
            return f"its last block attends by {type(attention).__name__}, which takes one input for q, k and v"
        visual = model.visual
        if modality == "image" and (visual.attn_pool is not None or visual.pool_type != "tok"):
            pool = "attention" if visual.attn_pool is not None else repr(visual.pool_type)
            return f"pooled by {pool}, which reads every token"
        return ""

    def needs_full_texts(self, model: Any) -> str:
        pool, tower = text_pool(model), text_tower(model)
        if pool not in ("first", "argmax", "eos"):
            return f"pooled by {pool!r}, which counts from the end of the context"
        return "" if tower.attn_mask is not None else "attention is not causal: every token reads the padding"

    def text_ends(self, model: Any, text: Tensor) -> Tensor:
        rows = self.pooled_rows(model, "text", text, text)
        assert rows is not None
        return rows

    def enter(self, model: Any, modality: str, inputs: Tensor) -> Tensor:
        if modality == "image" or inputs.shape[1] == self.vocabulary(model)[1]:
            return super().enter(model, modality, inputs)
        tower: Any = text_tower(model)
        dtype, length = tower.transformer.get_cast_dtype(), inputs.shape[1]
        hidden = tower.token_embedding(inputs).to(dtype) + tower.positional_embedding[:length].to(dtype)
        hidden = tower.transformer(hidden, **self.block_arguments(model, modality, hidden))
        return self.project(model, modality, hidden, self.pooled_rows(model, modality, hidden, inputs))

    def run_block(self, model: Any, modality: str, block: Any, hidden: Tensor, arguments: Any, lean: bool) -> Tensor:
        transformer: Any = model.visual.transformer if modality == "image" else text_tower(model).transformer
        if transformer.grad_checkpointing and torch.is_grad_enabled():
            return torch.utils.checkpoint.checkpoint(block, hidden, use_reentrant=False, **arguments)
        layers = dict(block.mlp.named_children())
        scaled = not isinstance(layers.get("ln", nn.Identity()), nn.Identity)
        if not lean or not torch.is_grad_enabled() or not layers.keys() >= {"c_fc", "gelu", "c_proj"} or scaled:
            return block(hidden, **arguments)
        normed = block.ln_1(hidden)
        if hasattr(block, "attention"):
            attended = block.attention(normed, **arguments)
        else:
            attended = block.ln_attn(block.attn(normed, **arguments))
        hidden = hidden + block.ls_1(attended)
        normed = block.ln_2(hidden)
        wide = feed_forward(layers["c_fc"], layers["gelu"], layers["c_proj"], normed)
        return hidden + block.ls_2(block.mlp(normed) if wide is None else wide)

    def pooled_block(self, block: Any, hidden: Tensor, rows: Tensor, arguments: dict[str, Any]) -> Tensor | None:
        attention: Any = block.attn
        if not isinstance(attention, (nn.MultiheadAttention, MultiheadAttention, OpenClipAttention)):
            return None
        own = isinstance(attention, OpenClipAttention)
        if own and not attention.is_on:
            return None
        mask = arguments.get("attn_mask")
        if mask is not None:
            mask = mask[rows, None].repeat_interleave(attention.num_heads, dim=0)
        normed = block.ln_1(hidden)
        query = pick(normed, rows)[:, None]
        if own:
            attended = block.ln_attn(attention(query, k_x=normed, v_x=normed, attn_mask=mask))
        else:
            attended = block.attention(query, k_x=normed, v_x=normed, attn_mask=mask)
        x = pick(hidden, rows)[:, None] + block.ls_1(attended)
        return x + block.ls_2(block.mlp(block.ln_2(x)))

    def project(self, model: Any, modality: str, hidden: Tensor, rows: Tensor | None) -> Tensor:
        if modality == "image":
            pooled, _ = model.visual._pool(hidden)
            return pooled if model.visual.proj is None else pooled @ model.visual.proj
        tower = text_tower(model)
        hidden = tower.ln_final(hidden)
        pooled = hidden if rows is None else pick(hidden, rows)
        projection = tower.text_projection
        if projection is None:
            return pooled
        return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection


def text_pool(model: Any) -> str:
    """How the text tower pools: "argmax" is the end token."""
    return str(getattr(model, "text_pool_type", None) or getattr(text_tower(model), "pool_type", "argmax"))


def end_token(model: Any) -> int:
    """The end token of a text tower that is pooled by "eos"."""
    own = getattr(model, "text_eos_id", None)
    return int(text_tower(model).eos_id if own is None else own)


def end_frame(model: Any, size: int) -> tuple[int, int, int]:
    """(begin, end, padding) of the texts of a tower that is pooled at an end token; `begin` by "eos" is any other."""
    padding = int(getattr(text_tower(model), "pad_id", 0))
    if text_pool(model) == "argmax":
        return size - 2, size - 1, padding
    return int(end_token(model) == 0), end_token(model), padding


def text_tower(model: Any) -> Any:
    """The module that holds the text embeddings: the model itself for `CLIP`, else its `text`."""
    return model if hasattr(model, "token_embedding") else model.text


def class_tokens(tower: Any) -> int:
    """How many positions the tower itself appends to a text (CoCa's class token)."""
    return int(getattr(tower, "cls_emb", None) is not None)
