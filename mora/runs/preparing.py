"""How values of rows become what towers take, and what stands for those that are missing: by modality."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class OneText:
    """A text to int64 [L], by a tokenizer of several."""

    tokenize: Callable[[Sequence[str]], Tensor]

    def __call__(self, text: str) -> Tensor:
        return self.tokenize([text])[0]


@dataclass(frozen=True)
class Preparing:
    """One function for each tower of a model, picklable: it goes to worker processes.

    Attributes:
        preprocess: of images, a PIL image to [3, H, W].
        tokenize: of texts, several to int64 [B, L].
        others: of further modalities, one value to one tensor.
        missing: one input for each tower of the model, in their order: what stands for one that is missing.
    """

    preprocess: Callable[[Any], Tensor]
    tokenize: Callable[[Sequence[str]], Tensor]
    others: Mapping[str, Callable[[Any], Tensor]]
    missing: Mapping[str, Tensor]

    @property
    def modalities(self) -> tuple[str, ...]:
        """Of the model's towers, in their order."""
        return tuple(self.missing)

    def step(self, modality: str) -> Callable[[Any], Tensor]:
        """What makes a tensor of one value; ValueError for a modality that nobody said it of."""
        if modality in self.others:
            return self.others[modality]
        if modality == "image":
            return self.preprocess
        if modality == "text":
            return OneText(self.tokenize)
        known = ", ".join(dict.fromkeys(("image", "text", *self.others)))
        raise ValueError(
            f"backbone: got no preprocessing of {modality}, expected one beside {known}: "
            f"Backbone.of(..., others={{{modality!r}: ...}})"
        )

    def one(self, modality: str, value: Any) -> Tensor:
        """What a tower takes of a value, or of a missing one (None)."""
        return self.missing[modality] if value is None else self.step(modality)(value)

    def check_data(self, where: str, modalities: Sequence[str]) -> None:
        """ValueError for data of a modality that the model has no tower or no preprocessing for."""
        if unknown := [name for name in modalities if name not in self.missing]:
            raise ValueError(
                f"data: {where} has {', '.join(unknown)}, which the model has no tower for, expected some of "
                f"{', '.join(self.missing)}"
            )
        for name in modalities:
            self.step(name)
