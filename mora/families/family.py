"""What the rest of the library asks of a CLIP, whatever library it comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mora.families.site import Site

# What a model without preprocessing settings of its own is taken to use: OpenAI CLIP's channel statistics.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Family(ABC):
    """One library's way to build a CLIP: where its blocks are, and how its towers are called."""

    name: str
    looked_for: str

    @abstractmethod
    def matches(self, model: nn.Module) -> bool:
        """Whether `model` is of this family."""

    @abstractmethod
    def towers(self, model: nn.Module) -> dict[str, list[Site]]:
        """Every block's site from bottom to top, by modality; raises ValueError for a tower that has none."""

    @abstractmethod
    def encode_image(self, model: nn.Module, image: Tensor) -> Tensor:
        """Un-normalised image embeddings [B, e] of preprocessed images [B, 3, H, W]."""

    @abstractmethod
    def encode_text(self, model: nn.Module, text: Tensor) -> Tensor:
        """Un-normalised text embeddings [B, e] of token ids [B, L]."""

    @abstractmethod
    def embedding_size(self, model: nn.Module) -> int:
        """e, the width of both embeddings."""

    @abstractmethod
    def white_image(self, model: nn.Module) -> Tensor:
        """The substitute of a missing image: white, preprocessed, [3, H, W] float32."""

    @abstractmethod
    def empty_text(self, model: nn.Module) -> Tensor:
        """The substitute of a missing text: the token ids of "", [L] int64."""

    @abstractmethod
    def vocabulary(self, model: nn.Module) -> tuple[int, int]:
        """Number of tokens, and length of a text."""

    def random_text(self, model: nn.Module, batch: int) -> Tensor:
        """Random token ids [batch, L] that the text tower can pool."""
        size, length = self.vocabulary(model)
        tokens = torch.randint(1, max(2, size - 2), (batch, length))
        try:
            begin, end = self.empty_text(model)[:2]
        except ValueError:  # a tower that pools by position needs no end token
            return tokens
        tokens[:, 0], tokens[:, -1] = begin, end
        return tokens


def white(size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """A white image after channel normalisation, [3, H, W]."""
    channels = (1.0 - torch.tensor(mean)) / torch.tensor(std)
    return channels[:, None, None].expand(3, *size).clone()


def block_sites(
    modality: str, blocks: nn.ModuleList, name: str, path: str, site: type[Site], fits: Callable[[nn.Module], bool]
) -> list[Site]:
    """One site per block, whose attention is attribute `name`; raises ValueError where it is missing."""
    sites: list[Site] = []
    for layer, block in enumerate(blocks):
        where = f"{path}.{layer}.{name}"
        attention = getattr(block, name, None)
        if attention is None or not fits(attention):
            raise ValueError(
                f"model: looked for an attention with q, k, v at {where}, found {type(attention).__name__}"
            )
        sites.append(site(modality, layer, block, name, where))
    return sites


def descend(model: nn.Module, path: str) -> nn.Module | None:
    """The module at a dotted path, or None."""
    found: nn.Module | None = model
    for name in path.split("."):
        found = getattr(found, name, None)
    return found
