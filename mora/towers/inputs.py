"""What towers take: preprocessed images, or token ids. Their substitutes, and random ones."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mora.towers.tower import Tower


@dataclass(frozen=True)
class ImageInputs(Tower):
    """A tower of preprocessed images [B, 3, H, W]."""

    @abstractmethod
    def size(self, model: Any) -> tuple[int, int]:
        """Height and width of a preprocessed image."""

    @abstractmethod
    def statistics(self, model: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, with which the model's own preprocessing ends."""

    def substitute(self, model: Any) -> Tensor:
        """White, preprocessed, [3, H, W] float32."""
        mean, std = self.statistics(model)
        channels = (1.0 - torch.tensor(mean)) / torch.tensor(std)
        return channels[:, None, None].expand(3, *self.size(model)).clone()

    def random(self, model: Any, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Random preprocessed images [batch, 3, H, W] float32."""
        return torch.randn(batch, 3, *self.size(model), generator=generator)


def sides(size: Any) -> tuple[int, int]:
    """Height and width of an image by a configuration, which gives one number where they are equal."""
    return (int(size[0]), int(size[1])) if isinstance(size, (tuple, list)) else (size, size)


@dataclass(frozen=True)
class TokenInputs(Tower):
    """A tower of token ids [B, L]; its substitute is that of "", [L] int64."""

    @abstractmethod
    def vocabulary(self, model: Any) -> tuple[int, int]:
        """Number of tokens, and length of a text."""

    @abstractmethod
    def frame(self, model: Any) -> tuple[int, int, int] | None:
        """(begin, end, padding): tokens of a text that is pooled at its end token; None where it is pooled elsewhere.

        Only the end token has to be the tokenizer's.
        """

    def random(self, model: Any, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Random token ids [batch, L] that the tower can pool, ending at places of their own."""
        size, length = self.vocabulary(model)
        tokens = torch.randint(1, max(2, size - 2), (batch, length), generator=generator)
        frame = self.frame(model)
        if frame is None:
            return tokens
        begin, end, padding = frame
        tokens = tokens.masked_fill(tokens == end, begin)
        places = torch.arange(1, batch + 1)[:, None] * length // (batch + 1)
        places, each = places.clamp(min=1, max=length - 1), torch.arange(length)
        tokens = tokens.where(each < places, torch.full_like(tokens, padding).where(each > places, torch.tensor(end)))
        tokens[:, 0] = begin
        return tokens
