"""A linear head on both embeddings of a CLIP, for samples that may lack their image or their text."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mora.adapters import is_patched, unwrap
from mora.families import family_of


class MissingModalityClassifier(nn.Module):
    """logits = Linear([image embedding; text embedding]), a missing modality replaced by its substitute.

    Embeddings are projected and un-normalised. The substitute of a missing image is a white image, preprocessed; of a
    missing text, the tokens of "". In eval a missing modality costs one row per batch, not one per sample; in training
    every row passes through the tower, so that dropout stays per sample.

    Args:
        model: an open_clip or Hugging Face CLIP, patched or not.
        num_classes: C; the head is `nn.Linear(2 e, C)`, weight drawn N(0, 0.02).
        missing_image: [3, H, W] substitute, when the model's own preprocessing is not CLIP's.
        empty_text: [L] token ids of "", `tokenizer([""])[0]`, for tokenizers other than CLIP's.

    Raises ValueError for an unknown model or `num_classes` below 1.
    """

    missing_image: Tensor
    missing_text: Tensor

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        missing_image: Tensor | None = None,
        empty_text: Tensor | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 1:
            raise ValueError(f"num_classes: got {num_classes!r}, expected an int of at least 1")
        clip = unwrap(model) if is_patched(model) else model
        self.family = family_of(clip)
        self.model = model
        parameter = next(clip.parameters())
        missing_image = self.family.white_image(clip) if missing_image is None else missing_image
        empty_text = self.family.empty_text(clip) if empty_text is None else empty_text
        self.register_buffer("missing_image", missing_image.to(parameter.device), persistent=False)
        self.register_buffer("missing_text", empty_text.to(parameter.device), persistent=False)
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        width = 2 * self.family.embedding_size(clip)
        self.head = nn.Linear(width, num_classes, device=parameter.device, dtype=dtype)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(
        self,
        image: Tensor | None = None,
        text: Tensor | None = None,
        image_present: Tensor | None = None,
        text_present: Tensor | None = None,
    ) -> Tensor:
        """Return logits [B, C].

        Args:
            image: preprocessed images [B, 3, H, W], or None when every row lacks its image.
            text: token ids [B, L], or None when every row lacks its text.
            image_present: bool [B]; a False row of `image` is not looked at. None: all there (if `image` is).
            text_present: bool [B], likewise.

        Raises ValueError when a row lacks both, or sizes do not agree.
        """
        batch = batch_size(image, text)
        image_present = presence("image_present", image_present, image, batch, self.head.weight.device)
        text_present = presence("text_present", text_present, text, batch, self.head.weight.device)
        lost = ~(image_present | text_present)
        if lost.any():
            rows = lost.nonzero().flatten().tolist()
            raise ValueError(f"image_present, text_present: got both False in rows {rows}, expected one to be there")
        return self.head(self.embed(image, text, image_present, text_present))

    def embed(self, image: Tensor | None, text: Tensor | None, image_present: Tensor, text_present: Tensor) -> Tensor:
        """[image embedding; text embedding] [B, 2 e] in the head's dtype."""
        weight = self.head.weight
        substitute = self.missing_image.to(image.dtype if image is not None else next(self.model.parameters()).dtype)
        embedded = (
            self.tower(self.family.encode_image, image, image_present, substitute),
            self.tower(self.family.encode_text, text, text_present, self.missing_text),
        )
        dtype = embedded[0].dtype if torch.is_autocast_enabled(weight.device.type) else weight.dtype
        return torch.cat([embedding.to(dtype) for embedding in embedded], dim=-1)

    def tower(
        self,
        encode: Callable[[nn.Module, Tensor], Tensor],
        given: Tensor | None,
        present: Tensor,
        substitute: Tensor,
    ) -> Tensor:
        """Embeddings [B, e] of one modality; absent rows are those of the substitute."""
        if self.training:
            rows = substitute.expand(len(present), *substitute.shape)
            if given is not None:
                keep = present.view(-1, *[1] * (given.dim() - 1))
                rows = torch.where(keep, given, fit(rows, given))
            return encode(self.model, rows)
        if given is not None and bool(present.all()):
            return encode(self.model, given)
        lone = encode(self.model, substitute[None])
        if given is None or not bool(present.any()):
            return lone.expand(len(present), -1)
        embedded = encode(self.model, given[present])
        return lone.repeat(len(present), 1).index_copy(0, present.nonzero().flatten(), embedded)


def fit(rows: Tensor, given: Tensor) -> Tensor:
    """The substitute's rows at the length of a text batch that was trimmed or is shorter than the context."""
    if rows.shape == given.shape:
        return rows
    if rows.dim() == 2 and rows.shape[1] > given.shape[1] >= 2:
        return rows[:, : given.shape[1]]
    raise ValueError(f"image or text: got rows of shape {tuple(given.shape[1:])}, expected {tuple(rows.shape[1:])}")


def batch_size(image: Tensor | None, text: Tensor | None) -> int:
    """Rows of the batch; ValueError when both are None or they disagree."""
    if image is None and text is None:
        raise ValueError("image, text: got None for both, expected at least one modality")
    sizes = {len(given) for given in (image, text) if given is not None}
    if len(sizes) > 1:
        raise ValueError(f"text: got {len(text)} rows, expected {len(image)}, those of image")  # type: ignore[arg-type]
    return sizes.pop()


def presence(name: str, present: Tensor | None, given: Tensor | None, batch: int, device: torch.device) -> Tensor:
    """The mask [B] of rows that are there; ValueError when it has another shape or dtype, or names absent data."""
    if present is None:
        return torch.full((batch,), given is not None, device=device)
    if not isinstance(present, Tensor) or present.dtype != torch.bool or tuple(present.shape) != (batch,):
        got = f"{present.dtype} {tuple(present.shape)}" if isinstance(present, Tensor) else type(present).__name__
        raise ValueError(f"{name}: got {got}, expected a bool tensor of shape ({batch},)")
    if given is None and present.any():
        raise ValueError(f"{name}: got True rows without the data, expected {name.split('_')[0]} to be given")
    return present.to(device)
