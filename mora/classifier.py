"""A linear head on the embeddings of every tower, for samples that may lack a modality."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mora.adapters import adapters_of, is_patched
from mora.first_step import begin_training
from mora.savings.encoder import Encoder
from mora.savings.options import Hidden, Savings
from mora_kernels.kept import keeping, scope_of


class MissingModalityClassifier(Encoder):
    """logits = Linear([image embedding; text embedding]), a missing modality replaced by its substitute.

    Embeddings are projected and un-normalised. The substitute of a missing image is a white image, preprocessed; of a
    missing text, the tokens of "". What cannot change a result is not computed (`mora.Savings`, docs/savings.md): in
    eval all rows that lack a modality cost at most one; in training every row passes the
    blocks that are trained, so that dropout stays per sample, and only rows that are there pass the frozen ones.

    Args:
        model: an open_clip or Hugging Face CLIP, or another model with towers, patched or not.
        num_classes: C; the head is `nn.Linear(2 e, C)` (the sum of the towers' e), weight drawn N(0, 0.02).
        missing_image: [3, H, W] substitute, when the model's own preprocessing is not CLIP's.
        empty_text: [L] token ids of "", `tokenizer([""])[0]`, for tokenizers other than CLIP's.
        savings: what is left out of the computation; by default all that is exact. `mora.Savings.none()`: nothing.
        missing: substitutes by modality, one input each: for other modalities than images and texts.
        towers: of a model of your own that is not patched, as `mora.patch` takes them.

    Raises ValueError for an unknown model, a tower whose substitute is not known, or `num_classes` below 1.
    """

    missing_image: Tensor
    missing_text: Tensor

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        missing_image: Tensor | None = None,
        empty_text: Tensor | None = None,
        savings: Savings | None = None,
        missing: Mapping[str, Tensor] | None = None,
        towers: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 1:
            raise ValueError(f"num_classes: got {num_classes!r}, expected an int of at least 1")
        super().__init__(model, savings, {"image": missing_image, "text": empty_text, **(missing or {})}, towers)
        clip = self.clip
        parameter = next(clip.parameters())
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        width = sum(tower.width(clip) for tower in self.towers.values())
        self.head = nn.Linear(width, num_classes, device=parameter.device, dtype=dtype)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(
        self,
        image: Tensor | Hidden | None = None,
        text: Tensor | Hidden | None = None,
        image_present: Tensor | None = None,
        text_present: Tensor | None = None,
        inputs: Mapping[str, Tensor | Hidden | None] | None = None,
        present: Mapping[str, Tensor | None] | None = None,
    ) -> Tensor:
        """Return logits [B, C].

        Args:
            image: preprocessed images [B, 3, H, W], or None when every row lacks its image; or a `mora.Hidden`, rows
                that passed the frozen blocks already.
            text: token ids [B, L], or None when every row lacks its text; or a `mora.Hidden`.
            image_present: bool [B]; a False row of `image` is not looked at. None: all there (if `image` is).
            text_present: bool [B], likewise.
            inputs: the same by modality, {"audio": ..., "image": ...}, for models with any towers.
            present: bool [B] by modality.

        Raises ValueError when a row lacks all, sizes do not agree, or a modality is no tower of the model.
        """
        if self.training:
            begin_training(self.model)
        if inputs is None and present is None:
            inputs, present = {"image": image, "text": text}, {"image": image_present, "text": text_present}
            names = {modality: f"{modality}_present" for modality in self.towers}
        elif inputs is None or any(one is not None for one in (image, text, image_present, text_present)):
            raise ValueError("inputs: got present alone, or image and text as well, expected inputs and present alone")
        else:
            names = {modality: f"present[{modality!r}]" for modality in self.towers}
        given = {modality: rows for modality, rows in inputs.items() if rows is not None}
        masks = {modality: mask for modality, mask in (present or {}).items() if mask is not None}
        if unknown := [modality for modality in {**given, **masks} if modality not in self.towers]:
            raise ValueError(f"inputs: got {', '.join(unknown)}, expected some of {', '.join(self.towers)}")
        batch, there = batch_size(given, self.towers), {}
        for modality, name in names.items():
            rows = given.get(modality)
            if isinstance(rows, Hidden):
                self.runners[modality].check(rows)
            there[modality] = presence(name, modality, masks.get(modality), rows, batch, self.head.weight.device)
        check_some(there, names.values())
        with self.one_call():
            return self.head(self.embed(given, there))

    def one_call(self) -> AbstractContextManager[object]:
        """A block in which W_eff of all towers is built once, where nobody asked to keep it for longer."""
        clip = self.clip
        if torch.compiler.is_compiling() or not is_patched(clip) or scope_of(clip) is not None:
            return nullcontext()
        return keeping([clip, adapters_of(clip).group], lasting=False)

    def embed(self, given: Mapping[str, Tensor | Hidden | None], present: Mapping[str, Tensor]) -> Tensor:
        """The embeddings of every modality side by side, [B, sum of e], in the head's dtype."""
        weight, embedded = self.head.weight, []
        for modality, runner in self.runners.items():
            rows = given.get(modality)
            dtype = rows.dtype if isinstance(rows, Tensor) else next(self.model.parameters()).dtype
            substitute = self.substitute(modality, dtype)
            embedded.append(runner.embed(self.model, rows, present[modality], substitute, self.training))
        dtype = embedded[0].dtype if torch.is_autocast_enabled(weight.device.type) else weight.dtype
        return torch.cat([embedding.to(dtype) for embedding in embedded], dim=-1)


def batch_size(given: Mapping[str, Tensor | Hidden], towers: Iterable[str]) -> int:
    """Rows of the batch; ValueError when nothing is given or sizes disagree."""
    if not given:
        every = [*towers]
        raise ValueError(f"{', '.join(every)}: got None for {both_or_all(every)}, expected at least one modality")
    first, batch = next((modality, len(rows)) for modality, rows in given.items())
    for modality, rows in given.items():
        if len(rows) != batch:
            raise ValueError(f"{modality}: got {len(rows)} rows, expected {batch}, those of {first}")
    return batch


def presence(
    name: str, modality: str, present: Tensor | None, given: Tensor | Hidden | None, batch: int, device: torch.device
) -> Tensor:
    """The mask [B] of rows that are there; ValueError when it has another shape or dtype, or names absent data."""
    if present is None:
        return torch.full((batch,), given is not None, device=device)
    if not isinstance(present, Tensor) or present.dtype != torch.bool or tuple(present.shape) != (batch,):
        got = f"{present.dtype} {tuple(present.shape)}" if isinstance(present, Tensor) else type(present).__name__
        raise ValueError(f"{name}: got {got}, expected a bool tensor of shape ({batch},)")
    if given is None and present.any():
        raise ValueError(f"{name}: got True rows without the data, expected {modality} to be given")
    return present.to(device)


def check_some(there: Mapping[str, Tensor], names: Collection[str]) -> None:
    """Raise ValueError that names the rows in which no modality is there."""
    lost = ~torch.stack([*there.values()]).any(dim=0)
    if lost.any():
        got = f"{both_or_all(names)} False in rows {lost.nonzero().flatten().tolist()}"
        raise ValueError(f"{', '.join(names)}: got {got}, expected one to be there")


def both_or_all(names: Collection[str]) -> str:
    """How a message calls two things, or another number of them."""
    return "both" if len(names) == 2 else "all"
