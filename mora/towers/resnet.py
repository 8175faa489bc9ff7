"""open_clip's `ModifiedResNet`, whose only attention is the one that pools: it is adapted, the convolutions are not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mora.config import MoraConfig
from mora.methods.factors import CommonFactors
from mora.projection.adapted import Adapted
from mora.projection.site import Site, present
from mora.system.hooks import share_hooks
from mora.towers.admission import altered, class_name
from mora.towers.cutting import CutTower
from mora.towers.layouts import Layout, Separate
from mora.towers.open_clip import EncodedImage
from mora.towers.slots import SeparateSlot, Slot

POOL = "visual.attnpool"
NAMES = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "c_proj"}


class AttentionPool(nn.Module):
    """Stands for `open_clip.modified_resnet.AttentionPool2d`, which reads its linears' weights and calls none of them.

    Rows x_0 = mean of all places, x_1.. = places, all with their positions; y = c(attention(q(x_0), k(x), v(x))), which
    is the one row that the original returns.

    Args:
        original: its parameters and children are kept as they are, under their own names.
    """

    positional_embedding: Tensor
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    c_proj: nn.Module

    def __init__(self, original: Any) -> None:
        super().__init__()
        self._original, self.num_heads = (original,), int(original.num_heads)
        self.register_parameter("positional_embedding", original.positional_embedding)
        for name in NAMES.values():
            self.add_module(name, getattr(original, name))
        share_hooks(self, original)
        self.train(original.training)

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings [B, e] of features [B, d, H, W]."""
        linears = [self.q_proj, self.k_proj, self.v_proj, self.c_proj]
        adapted = [one for one in map(present, linears) if isinstance(one, Adapted)]
        idle = not adapted and any(isinstance(one, Site) for one in linears)
        if idle or not all(one.switch.is_on for one in adapted):
            pooled: Tensor = self.give_back().forward(x)
            return pooled
        x = rearrange(x, "b d h w -> b (h w) d")
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
        x = x + self.positional_embedding.to(x.dtype)
        projected = self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x)
        q, k, v = (rearrange(y, "b l (h d) -> b h l d", h=self.num_heads) for y in projected)
        attended = F.scaled_dot_product_attention(q, k, v)
        embedded: Tensor = self.c_proj(rearrange(attended, "b h 1 d -> b (h d)"))
        return embedded

    def give_back(self) -> Any:
        """Return the original, holding the parameters as they are now."""
        original = self._original[0]
        original.positional_embedding = self.positional_embedding
        for name in NAMES.values():
            kept, now = getattr(original, name), getattr(self, name)
            kept.weight, kept.bias = now.weight, now.bias
        share_hooks(original, self)
        return original.train(self.training)


class PoolSlot(SeparateSlot):
    """The attention that pools a ResNet's features."""

    def linear(self, target: str) -> nn.Linear:
        found = self.attention
        if not isinstance(found, AttentionPool):
            from open_clip.modified_resnet import AttentionPool2d

            why = "of another class" if not isinstance(found, AttentionPool2d) else altered(found, AttentionPool2d)
            if why:
                raise ValueError(f"model: {self.path} is a {class_name(found)}, {why}, expected open_clip's own")
        return super().linear(target)

    def replaced(self, targets: tuple[str, ...]) -> dict[str, nn.Module]:
        return {self.path: self.attention, **super().replaced(targets)}

    def stand_in(self) -> None:
        """Put what calls its linears in the place of the pool."""
        setattr(self.parent, self.name, AttentionPool(self.attention))

    def install(self, targets: tuple[str, ...], common: CommonFactors, config: MoraConfig) -> None:
        self.stand_in()
        super().install(targets, common, config)

    def site(self, target: str) -> Site:
        if not isinstance(self.attention, AttentionPool):
            self.stand_in()
        return super().site(target)

    def restore(self) -> None:
        super().restore()
        self.put_back()

    def put_back(self) -> None:
        """The pool itself again, holding the parameters as they are now."""
        if isinstance(self.attention, AttentionPool):
            setattr(self.parent, self.name, self.attention.give_back())

    def split(self, targets: tuple[str, ...]) -> None:
        super().split(targets)
        self.stand_in()

    def unsplit(self, targets: tuple[str, ...]) -> None:
        self.put_back()


@dataclass(frozen=True)
class PoolLayout(Separate):
    """The pool's linears, read and not called."""

    def slot(self, modality: str, layer: int, block: nn.Module, path: str) -> Slot:
        return PoolSlot(modality, layer, block, self.attention, path, self.below())


@dataclass(frozen=True)
class ResNetImage(EncodedImage, CutTower):
    """open_clip's ResNet: one block, the attention that pools; everything below it is frozen."""

    kind: ClassVar[str] = "open_clip ResNet"
    family: ClassVar[str] = "attention pool"
    layout: ClassVar[Layout] = PoolLayout({target: f"attnpool.{name}" for target, name in NAMES.items()})

    def slots(self, model: Any) -> list[Slot]:
        return [self.layout.slot(self.modality, 0, model.visual, "visual")]

    def blocks(self, model: Any) -> list[nn.Module]:
        return [model.get_submodule(self.path)]

    def block_arguments(self, model: Any, hidden: Tensor) -> dict[str, Any]:
        return {}

    def pooled_rows(self, model: Any, hidden: Tensor, tokens: Tensor | None) -> Tensor | None:
        return None

    def needs_all_tokens(self, model: Any) -> str:
        return "pooled by attention, which reads every place"

    def pooled_block(self, block: Any, hidden: Tensor, rows: Tensor, arguments: dict[str, Any]) -> Tensor | None:
        return None

    def run_block(self, model: Any, block: Any, hidden: Tensor, arguments: Any, lean: bool) -> Tensor:
        return block(hidden)

    def project(self, model: Any, hidden: Tensor, rows: Tensor | None) -> Tensor:
        return hidden
