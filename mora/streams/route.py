"""A route: which tokens of a stream [B, L] belong to which modality, and how the inputs of a model say it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

MOST_SPANS = 8  # per row; beyond it one product for all tokens and a select
Span = tuple[str, int]  # a modality, and how many tokens of it


@dataclass(frozen=True, eq=False)
class Route:
    """The tokens of one forward call.

    Attributes:
        modalities: whose tokens there may be.
        spans: where all rows are alike, the modality and the length of each run of tokens; a length of -1 is what
            remains. None where rows differ.
        index: int8 [B, L], the place of each token's modality in `modalities`; None where `spans` say it.
    """

    modalities: tuple[str, ...]
    spans: tuple[Span, ...] | None
    index: Tensor | None = None

    @classmethod
    def of_index(cls, modalities: tuple[str, ...], index: Tensor) -> Route:
        """The route of an index; by spans where all rows are alike, which costs one look at its values."""
        return cls(modalities, spans_of(modalities, index), index)

    def equals(self, other: Route) -> bool:
        """Whether both say the same of every token."""
        if self.spans is not None or other.spans is not None:
            return self.spans == other.spans and (self.index is None) == (other.index is None)
        assert self.index is not None
        assert other.index is not None
        return self.index.shape == other.index.shape and torch.equal(self.index, other.index)

    def fits(self, x: Tensor) -> bool:
        """Whether x [B, L, d], or [B L, d], can be the tokens of this route."""
        if self.index is not None:
            return x.shape[:-1] in (self.index.shape, (self.index.numel(),))
        assert self.spans is not None
        known = sum(length for _, length in self.spans if length > 0)
        return x.dim() == 3 and x.shape[1] >= known

    def apply(self, x: Tensor, one: Callable[[str, Tensor], Tensor], every: Callable[[Tensor], list[Tensor]]) -> Tensor:
        """Each token by the function of its modality, [..., out].

        Args:
            x: [B, L, d], or [B L, d].
            one: (modality, tokens of it [..., d]) -> [..., out]; called once for each span.
            every: tokens -> [..., out] by the function of each of `modalities`; called where rows differ.
        """
        if not self.fits(x):
            expected = self.index.shape if self.index is not None else self.spans
            raise ValueError(
                f"route: got x of shape {tuple(x.shape)} where the call's tokens are {expected}, expected as many: the "
                "model adds or drops tokens that its inputs do not show"
            )
        if self.spans is None:
            assert self.index is not None
            return select(every(x), self.index.to(x.device).view(*x.shape[:-1], 1))
        flat = x.dim() == 2
        if flat:
            assert self.index is not None
            x = x.view(*self.index.shape, x.shape[-1])
        total, start, parts = x.shape[1], 0, []
        for modality, length in self.spans:
            length = total - start if length < 0 else length
            if length:
                parts.append(one(modality, x.narrow(1, start, length)))
            start += length
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return y.flatten(0, 1) if flat else y


def select(products: list[Tensor], index: Tensor) -> Tensor:
    """products[index[b, l]][b, l] of every token; without a gather."""
    y = products[0]
    for number, other in enumerate(products[1:], 1):
        y = torch.where(index == number, other, y)
    return y


def spans_of(modalities: tuple[str, ...], index: Tensor) -> tuple[Span, ...] | None:
    """The runs of every row of int8 [B, L] where all rows have the same ones; None where not, or where nobody can look.

    Values on a GPU are looked at by one transfer; while a CUDA graph is captured there is none.
    """
    if index.is_meta or not index.numel() or (index.is_cuda and torch.cuda.is_current_stream_capturing()):
        return None
    alike = (index == index[:1]).all().to(index.dtype)
    *row, same = torch.cat([index[0], alike[None]]).tolist()
    if not same:
        return None
    spans = tuple((modalities[number], len([*run])) for number, run in groupby(row))
    return spans if len(spans) <= MOST_SPANS else None


class Reader(ABC):
    """How the arguments of a model's forward call say which token is of which modality."""

    @property
    @abstractmethod
    def modalities(self) -> tuple[str, ...]:
        """Whose tokens there may be."""

    @abstractmethod
    def read(self, arguments: Mapping[str, Any]) -> Route | None:
        """The route of a call; None where its arguments do not say it."""

    @abstractmethod
    def of_ids(self, ids: Tensor) -> Route:
        """The route of token ids [B, L]."""


@dataclass(frozen=True)
class TextFirst(Reader):
    """ViLT: the text's tokens, then the image's, as many of each in every row; padding belongs to its own part."""

    first: str = "text"
    rest: str = "image"

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.rest, self.first

    def read(self, arguments: Mapping[str, Any]) -> Route | None:
        for name in ("input_ids", "inputs_embeds"):
            if isinstance(given := arguments.get(name), Tensor):
                return self.of_ids(given)
        return None

    def of_ids(self, ids: Tensor) -> Route:
        return Route(self.modalities, ((self.first, ids.shape[1]), (self.rest, -1)))


@dataclass(frozen=True)
class Marked(Reader):
    """A decoder: tokens with given ids are of a modality, all others of `rest`.

    Attributes:
        marks: the modality of some token ids.
    """

    marks: tuple[tuple[int, str], ...]
    rest: str = "text"

    @property
    def modalities(self) -> tuple[str, ...]:
        """All of them, `rest` last."""
        return (*dict.fromkeys(modality for _, modality in self.marks), self.rest)

    def read(self, arguments: Mapping[str, Any]) -> Route | None:
        ids = arguments.get("input_ids")
        return self.of_ids(ids) if isinstance(ids, Tensor) else None

    def of_ids(self, ids: Tensor) -> Route:
        modalities = self.modalities
        index = torch.full(ids.shape, len(modalities) - 1, dtype=torch.int8, device=ids.device)
        for token, modality in self.marks:
            index.masked_fill_(ids == token, modalities.index(modality))
        return Route.of_index(modalities, index)
