"""Towers of open_clip models: released blocks on `nn.MultiheadAttention`, newer ones on its own `Attention`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from mora.towers.attention import MultiheadAttention, OpenClipAttention
from mora.towers.cutting import CutTower, pick
from mora.towers.feed_forward import feed_forward
from mora.towers.inputs import ImageInputs, TokenInputs, sides
from mora.towers.kinds import CLIP_MEAN, CLIP_STD, CLIP_VOCABULARY
from mora.towers.layouts import Layout, Packed
from mora.towers.slots import Slot
from mora.towers.tower import Tower

IMAGE_BLOCKS = ("visual.transformer.resblocks",)
TEXT_BLOCKS = ("transformer.resblocks", "text.transformer.resblocks")


@dataclass(frozen=True)
class OpenClipTower(CutTower):
    """A stack of open_clip's own blocks; q, k, v packed."""

    layout: ClassVar[Layout] = Packed("attn")
    fronts: ClassVar[bool] = True

    def needs_all_tokens(self, model: Any) -> str:
        attention = self.slots(model)[-1].attention
        if not isinstance(attention, (nn.MultiheadAttention, MultiheadAttention, OpenClipAttention)):
            return f"its last block attends by {type(attention).__name__}, which takes one input for q, k and v"
        return ""

    def run_block(self, model: Any, block: Any, hidden: Tensor, arguments: Any, lean: bool) -> Tensor:
        transformer: Any = model.get_submodule(self.path.rpartition(".")[0])
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


@dataclass(frozen=True)
class EncodedImage(ImageInputs):
    """The image tower of an open_clip model as the model runs it, whatever library it is from."""

    def encode(self, model: Any, inputs: Tensor) -> Tensor:
        return encoded(model, model.encode_image, inputs)

    def width(self, model: Any) -> int:
        return int(model.visual.output_dim)

    def size(self, model: Any) -> tuple[int, int]:
        return sides(model.visual.image_size)

    def statistics(self, model: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        settings = getattr(model.visual, "preprocess_cfg", None) or {}
        found = []
        for key, otherwise in (("mean", CLIP_MEAN), ("std", CLIP_STD)):
            own = settings.get(key, getattr(model.visual, f"image_{key}", None))
            found.append(otherwise if own is None else tuple(map(float, own)))
        return found[0], found[1]


@dataclass(frozen=True)
class OtherImage(EncodedImage):
    """An image tower that open_clip does not build itself: it runs, and is not adapted."""

    kind: ClassVar[str] = "open_clip image of another library"

    def slots(self, model: Any) -> list[Slot]:
        raise not_own(self.modality, IMAGE_BLOCKS, model.visual)


@dataclass(frozen=True)
class OpenClipImage(EncodedImage, OpenClipTower):
    """open_clip's own image transformer: pooled at its class token, by averages or by attention."""

    kind: ClassVar[str] = "open_clip image"

    def block_arguments(self, model: Any, hidden: Tensor) -> dict[str, Any]:
        return {}

    def pooled_rows(self, model: Any, hidden: Tensor, tokens: Tensor | None) -> Tensor | None:
        visual = model.visual
        first = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
        return first if visual.attn_pool is None and visual.pool_type == "tok" else None

    def needs_all_tokens(self, model: Any) -> str:
        if why := super().needs_all_tokens(model):
            return why
        visual = model.visual
        if visual.attn_pool is not None or visual.pool_type != "tok":
            pool = "attention" if visual.attn_pool is not None else repr(visual.pool_type)
            return f"pooled by {pool}, which reads every token"
        return ""

    def project(self, model: Any, hidden: Tensor, rows: Tensor | None) -> Tensor:
        pooled, _ = model.visual._pool(hidden)
        return pooled if model.visual.proj is None else pooled @ model.visual.proj


@dataclass(frozen=True)
class OtherText(Tower):
    """A text tower that open_clip does not build itself: it runs, and is not adapted."""

    kind: ClassVar[str] = "open_clip text of another library"

    def slots(self, model: Any) -> list[Slot]:
        raise not_own(self.modality, TEXT_BLOCKS, getattr(model, "text", model))

    def encode(self, model: Any, inputs: Tensor) -> Tensor:
        return model.encode_text(inputs)

    def width(self, model: Any) -> int:
        return int(model.visual.output_dim)

    def substitute(self, model: Any) -> Tensor:
        raise ValueError("empty_text: got None for a text tower of another library, expected tokenizer([''])[0]")

    def random(self, model: Any, batch: int, generator: torch.Generator | None = None) -> Tensor:
        raise ValueError(f"model: got a {self.kind}, whose texts are not known, expected open_clip's own transformer")


@dataclass(frozen=True)
class OpenClipText(TokenInputs, OpenClipTower):
    """open_clip's own text transformer: pooled at its first, last or end token."""

    kind: ClassVar[str] = "open_clip text"
    trims: ClassVar[bool] = True

    def encode(self, model: Any, inputs: Tensor) -> Tensor:
        return encoded(model, model.encode_text, inputs)

    def width(self, model: Any) -> int:
        projection = text_tower(model).text_projection
        if projection is None:
            return int(text_tower(model).ln_final.normalized_shape[0])
        return int(projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1])

    def substitute(self, model: Any) -> Tensor:
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

    def frame(self, model: Any) -> tuple[int, int, int] | None:
        return end_frame(model, self.vocabulary(model)[0]) if text_pool(model) in ("argmax", "eos") else None

    def vocabulary(self, model: Any) -> tuple[int, int]:
        tower = text_tower(model)
        return tower.token_embedding.num_embeddings, tower.positional_embedding.shape[0] - class_tokens(tower)

    def block_arguments(self, model: Any, hidden: Tensor) -> dict[str, Any]:
        tower = text_tower(model)
        if class_tokens(tower) or getattr(tower, "use_pad_mask", False):
            raise ValueError("model: got a text tower with a class token or a padding mask, expected a causal one")
        length = hidden.shape[1]
        mask = tower.attn_mask
        if mask is None:
            return {}
        if length > len(mask):  # with rows in front; the mask is causal
            mask = mask.new_full((length, length), float("-inf")).triu(1)
        return {"attn_mask": mask[:length, :length]}

    def pooled_rows(self, model: Any, hidden: Tensor, tokens: Tensor | None) -> Tensor | None:
        pool = text_pool(model)
        if pool not in ("first", "last", "argmax", "eos"):
            raise ValueError(f"model: got a text tower pooled by {pool!r}, expected one that pools a token")
        if pool in ("first", "last"):
            first = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
            return first if pool == "first" else first + hidden.shape[1] - 1
        if tokens is None:
            raise self.tokens_needed(pool)
        return tokens.argmax(dim=-1) if pool == "argmax" else (tokens == end_token(model)).int().argmax(dim=-1)

    def needs_full_inputs(self, model: Any) -> str:
        pool, tower = text_pool(model), text_tower(model)
        if pool not in ("first", "argmax", "eos"):
            return f"pooled by {pool!r}, which counts from the end of the context"
        return "" if tower.attn_mask is not None else "attention is not causal: every token reads the padding"

    def enter(self, model: Any, inputs: Tensor) -> Tensor:
        if inputs.shape[1] == self.vocabulary(model)[1]:
            return super().enter(model, inputs)
        tower: Any = text_tower(model)
        dtype, length = tower.transformer.get_cast_dtype(), inputs.shape[1]
        hidden = tower.token_embedding(inputs).to(dtype) + tower.positional_embedding[:length].to(dtype)
        hidden = tower.transformer(hidden, **self.block_arguments(model, hidden))
        return self.project(model, hidden, self.pooled_rows(model, hidden, inputs))

    def project(self, model: Any, hidden: Tensor, rows: Tensor | None) -> Tensor:
        tower = text_tower(model)
        hidden = tower.ln_final(hidden)
        pooled = hidden if rows is None else pick(hidden, rows)
        projection = tower.text_projection
        if projection is None:
            return pooled
        return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection


def encoded(model: Any, encode: Callable[..., Tensor], inputs: Tensor) -> Tensor:
    """Embeddings by a model's own method, un-normalised: those of `CoCa` normalise unless told not to."""
    return encode(inputs, normalize=False) if hasattr(model, "text_decoder") else encode(inputs)


def not_own(modality: str, paths: tuple[str, ...], root: nn.Module) -> ValueError:
    """The error for a tower without open_clip's blocks."""
    return ValueError(
        f"model: looked for the {modality} tower's blocks at {' or '.join(paths)}, found a {type(root).__name__} "
        "without them: only open_clip's own transformer towers can be adapted"
    )


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
