"""timm's image models as open_clip's image tower (`open_clip.timm_model.TimmModel`).

Blocks are found by their attention, wherever it stands: in one list (vision transformers), or in the stages of a
convolutional network. Attention that pools is none of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from mora.towers.cutting import CutTower
from mora.towers.feed_forward import feed_forward
from mora.towers.layouts import Fused, Layout, Separate
from mora.towers.open_clip import EncodedImage
from mora.towers.slots import Slot
from mora.towers.tower import descend

TRUNK, BLOCKS = "visual.trunk", "visual.trunk.blocks"
ATTENTION = ("attn", "token_mixer")  # what a block calls it
POOLS = ("attn_pool", "head")


@dataclass(frozen=True)
class TimmImage(EncodedImage):
    """An image model of timm's, run whole; its blocks are those with attention, and may be of several widths."""

    kind: ClassVar[str] = "timm image"

    def slots(self, model: Any) -> list[Slot]:
        found = [
            layout.slot(self.modality, layer, block, f"{TRUNK}.{path}")
            for layer, (path, block, layout) in enumerate(attending(model.visual.trunk))
        ]
        if not found:
            raise ValueError(
                f"model: the {self.modality} tower is timm's {type(model.visual.trunk).__name__}, which has no "
                "attention with q, k, v to adapt: adapt the text tower alone, "
                f"adapt={{{self.modality!r}: 'frozen', 'text': 'mora'}}"
            )
        return found

    def width(self, model: Any) -> int:
        visual = model.visual
        projections = [layer for layer in visual.head.modules() if isinstance(layer, nn.Linear)]
        if projections:
            return int(projections[-1].out_features)
        return int(visual.trunk.num_classes or visual.trunk.num_features)


@dataclass(frozen=True)
class TimmTransformer(TimmImage, CutTower):
    """A vision transformer of timm's, whose blocks stand in one list: plain ones, EVA, ViTamin, relative positions."""

    kind: ClassVar[str] = "timm vision transformer"

    def slots(self, model: Any) -> list[Slot]:
        blocks = self.list_of(model)
        return [
            layout_of(block, type(block).__name__).slot(self.modality, layer, block, f"{self.path}.{layer}")
            for layer, block in enumerate(blocks)
        ]

    def trunk(self, model: Any) -> Any:
        """timm's model; raises ValueError when its blocks cannot be run one by one."""
        trunk: Any = model.visual.trunk
        why = {
            "depends on the size of each image": getattr(trunk, "dynamic_img_size", False),
            "has rotary embeddings of its own in every block": getattr(trunk, "rope_mixed", False),
            "drops patches at random": isinstance(getattr(trunk, "patch_drop", None), nn.Module)
            and not isinstance(trunk.patch_drop, nn.Identity),
        }
        if reasons := [reason for reason, holds in why.items() if holds]:
            raise ValueError(f"model: timm's {type(trunk).__name__} {' and '.join(reasons)}")
        return trunk

    def block_arguments(self, model: Any, hidden: Tensor) -> dict[str, Any]:
        trunk = self.trunk(model)
        if hasattr(trunk, "shared_rel_pos"):
            shared = trunk.shared_rel_pos
            return {"shared_rel_pos": None if shared is None else shared.get_bias()}
        rope = getattr(trunk, "rope", None)
        if rope is None:
            return {}
        shape = () if hasattr(rope, "feat_shape") else (trunk.patch_embed.grid_size,)
        return {"rope": rope.get_embed(*shape)}

    def pooled_rows(self, model: Any, hidden: Tensor, tokens: Tensor | None) -> Tensor | None:
        return None

    def needs_all_tokens(self, model: Any) -> str:
        trunk = self.trunk(model)
        if trunk.global_pool == "token":
            return "its attention takes one input for q, k and v"
        pool = "attention" if trunk.global_pool == "map" else repr(trunk.global_pool)
        return f"pooled by {pool}, which reads every token"

    def pooled_block(self, block: Any, hidden: Tensor, rows: Tensor, arguments: dict[str, Any]) -> Tensor | None:
        return None

    def run_block(self, model: Any, block: Any, hidden: Tensor, arguments: Any, lean: bool) -> Tensor:
        if self.trunk(model).grad_checkpointing and torch.is_grad_enabled():
            return torch.utils.checkpoint.checkpoint(block, hidden, use_reentrant=False, **arguments)
        if not lean or not torch.is_grad_enabled() or not plain(block):
            return block(hidden, **arguments)
        hidden = hidden + block.drop_path1(block.ls1(block.attn(block.norm1(hidden), **arguments)))
        normed, mlp = block.norm2(hidden), block.mlp
        wide = feed_forward(mlp.fc1, mlp.act, mlp.fc2, normed)
        return hidden + block.drop_path2(block.ls2(mlp(normed) if wide is None else wide))

    def project(self, model: Any, hidden: Tensor, rows: Tensor | None) -> Tensor:
        trunk = self.trunk(model)
        embedded: Tensor = model.visual.head(trunk.forward_head(trunk.norm(hidden)))
        return embedded


def image_tower(modality: str, model: Any) -> TimmImage:
    """The tower of a model whose `visual.trunk` is timm's."""
    blocks = descend(model, BLOCKS)
    plain_list = isinstance(blocks, (nn.Sequential, nn.ModuleList)) and len(blocks) > 0
    if plain_list and all(attention_name(block) for block in blocks):
        return TimmTransformer(modality, BLOCKS)
    return TimmImage(modality)


def attending(trunk: nn.Module) -> Iterator[tuple[str, nn.Module, Layout]]:
    """(path, block, layout) of every block with attention that is known, from bottom to top."""
    for path, block in trunk.named_modules():
        if path and not set(POOLS) & set(path.split(".")) and attention_name(block):
            yield path, block, layout_of(block, path)


def attention_name(block: Any) -> str:
    """What a block calls its attention with q, k, v; "" when it has none that is known."""
    return next((name for name in ATTENTION if fits(getattr(block, name, None))), "")


def fits(attention: Any) -> bool:
    """Whether an attention has q, k, v as one linear or as three, and an output projection."""
    held = [isinstance(getattr(attention, name, None), nn.Module) for name in ("qkv", "q_proj", "k_proj", "v_proj")]
    return isinstance(getattr(attention, "proj", None), nn.Module) and (held[0] or all(held[1:]))


def layout_of(block: Any, path: str) -> Layout:
    """How a block holds its projections; raises ValueError when it has none."""
    name = attention_name(block)
    if not name:
        raise ValueError(f"model: looked for an attention with q, k, v in {path}, found {type(block).__name__}")
    out = {"out": f"{name}.proj"}
    if isinstance(getattr(getattr(block, name), "qkv", None), nn.Module):
        return Fused(dict.fromkeys(("q", "k", "v"), f"{name}.qkv") | out)
    return Separate({target: f"{name}.{target}_proj" for target in ("q", "k", "v")} | out)


def plain(block: Any) -> bool:
    """Whether a block computes as timm's own transformer block does, with nothing drawn within its feed-forward."""
    kinds = [f"{type(part).__module__}.{type(part).__name__}" for part in (block, getattr(block, "mlp", None))]
    if kinds != ["timm.models.vision_transformer.Block", "timm.layers.mlp.Mlp"]:
        return False
    drops = [part for part in block.mlp.children() if isinstance(part, nn.Dropout)]
    return isinstance(block.mlp.norm, nn.Identity) and not (block.training and any(drop.p for drop in drops))
