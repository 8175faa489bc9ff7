"""A linear head on both embeddings of a CLIP, for samples that may lack their image or their text."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from mora.adapters import adapters_of, is_patched, unwrap
from mora.families import family_of
from mora.first_step import begin_training
from mora.keeping import forget
from mora.savings.options import Hidden, Savings
from mora.savings.plan import Plan
from mora.savings.state import kept, version
from mora.savings.towers import Tower
from mora_kernels.kept import keeping, scope_of


class MissingModalityClassifier(nn.Module):
    """logits = Linear([image embedding; text embedding]), a missing modality replaced by its substitute.

    Embeddings are projected and un-normalised. The substitute of a missing image is a white image, preprocessed; of a
    missing text, the tokens of "". What cannot change a result is not computed (`mora.Savings`, docs/savings.md): in
    eval all rows that lack a modality cost at most one; in training every row passes the
    blocks that are trained, so that dropout stays per sample, and only rows that are there pass the frozen ones.

    Args:
        model: an open_clip or Hugging Face CLIP, patched or not.
        num_classes: C; the head is `nn.Linear(2 e, C)`, weight drawn N(0, 0.02).
        missing_image: [3, H, W] substitute, when the model's own preprocessing is not CLIP's.
        empty_text: [L] token ids of "", `tokenizer([""])[0]`, for tokenizers other than CLIP's.
        savings: what is left out of the computation; by default all that is exact. `mora.Savings.none()`: nothing.

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
        savings: Savings | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 1:
            raise ValueError(f"num_classes: got {num_classes!r}, expected an int of at least 1")
        self.model = model
        clip = self.clip
        self.family = family_of(clip)
        self.save(Savings() if savings is None else savings)
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
        image: Tensor | Hidden | None = None,
        text: Tensor | Hidden | None = None,
        image_present: Tensor | None = None,
        text_present: Tensor | None = None,
    ) -> Tensor:
        """Return logits [B, C].

        Args:
            image: preprocessed images [B, 3, H, W], or None when every row lacks its image; or a `mora.Hidden`, rows
                that passed the frozen blocks already.
            text: token ids [B, L], or None when every row lacks its text; or a `mora.Hidden`.
            image_present: bool [B]; a False row of `image` is not looked at. None: all there (if `image` is).
            text_present: bool [B], likewise.

        Raises ValueError when a row lacks both, or sizes do not agree.
        """
        if self.training:
            begin_training(self.model)
        batch = batch_size(image, text)
        for modality, given in (("image", image), ("text", text)):
            if isinstance(given, Hidden):
                self.towers[modality].check(given)
        image_present = presence("image_present", image_present, image, batch, self.head.weight.device)
        text_present = presence("text_present", text_present, text, batch, self.head.weight.device)
        lost = ~(image_present | text_present)
        if lost.any():
            rows = lost.nonzero().flatten().tolist()
            raise ValueError(f"image_present, text_present: got both False in rows {rows}, expected one to be there")
        with self.one_call():
            return self.head(self.embed(image, text, image_present, text_present))

    @property
    def clip(self) -> nn.Module:
        """The CLIP itself, inside wrappers that `mora.patch` is seen through."""
        return unwrap(self.model) if is_patched(self.model) else self.model

    def one_call(self) -> AbstractContextManager[object]:
        """A block in which W_eff of both towers is built once, where nobody asked to keep it for longer."""
        clip = self.clip
        if torch.compiler.is_compiling() or not is_patched(clip) or scope_of(clip) is not None:
            return nullcontext()
        return keeping([clip, adapters_of(clip).group], lasting=False)

    def embed(
        self,
        image: Tensor | Hidden | None,
        text: Tensor | Hidden | None,
        image_present: Tensor,
        text_present: Tensor,
    ) -> Tensor:
        """[image embedding; text embedding] [B, 2 e] in the head's dtype."""
        weight = self.head.weight
        image_dtype = image.dtype if isinstance(image, Tensor) else next(self.model.parameters()).dtype
        embedded = (
            self.towers["image"].embed(self.model, image, image_present, self.white(image_dtype), self.training),
            self.towers["text"].embed(self.model, text, text_present, self.missing_text, self.training),
        )
        dtype = embedded[0].dtype if torch.is_autocast_enabled(weight.device.type) else weight.dtype
        return torch.cat([embedding.to(dtype) for embedding in embedded], dim=-1)

    def white(self, dtype: torch.dtype) -> Tensor:
        """The substitute of a missing image in another dtype."""
        if dtype == self.missing_image.dtype:
            return self.missing_image
        name = (id(self), "white", dtype)
        return kept(self.clip, name, lambda: version(self.missing_image), lambda: self.missing_image.to(dtype))

    def prefix(self, modality: str, inputs: Tensor) -> Hidden:
        """Rows past the frozen blocks, as `forward` takes them: what `mora.PrefixCache` keeps.

        Args:
            modality: "image" or "text".
            inputs: preprocessed images [B, 3, H, W], or token ids [B, L].

        Raises ValueError for a tower that cannot be cut there.
        """
        return self.towers[modality].prefix(self.model, inputs, self.substitute(modality))

    def embed_rows(self, modality: str, given: Tensor | Hidden) -> Tensor:
        """Embeddings [B, e] of one modality's rows, inputs or past the frozen blocks, all of them there."""
        return self.towers[modality].run(self.model, given, self.substitute(modality))

    def substitute(self, modality: str) -> Tensor:
        """What stands for a missing image [3, H, W] or a missing text [L]."""
        return self.white(next(self.model.parameters()).dtype) if modality == "image" else self.missing_text

    def plan(self, modality: str, training: bool | None = None) -> Plan:
        """Where a tower is cut, what is saved in it, and why not more; in the mode the model is in, or another."""
        return self.towers[modality].plan(self.model, self.substitute(modality), training)

    def saved(self) -> list[str]:
        """What is saved in each tower and what is not, in words."""
        return [line for modality in self.towers for line in self.plan(modality).lines(modality)]

    def save(self, savings: Savings) -> None:
        """Leave out of the computation what `savings` says, from now on."""
        self.savings = savings
        self.towers = {modality: Tower(modality, self.family, savings) for modality in ("image", "text")}

    def forget(self) -> None:
        """Drop all that is kept of the model, as `mora.forget(self)`, and what was found out about its towers."""
        forget(self)
        for tower in self.towers.values():
            tower.plans.forget()


def batch_size(image: Tensor | Hidden | None, text: Tensor | Hidden | None) -> int:
    """Rows of the batch; ValueError when both are None or they disagree."""
    if image is None and text is None:
        raise ValueError("image, text: got None for both, expected at least one modality")
    sizes = {len(given) for given in (image, text) if given is not None}
    if len(sizes) > 1:
        raise ValueError(f"text: got {len(text)} rows, expected {len(image)}, those of image")  # type: ignore[arg-type]
    return sizes.pop()


def presence(
    name: str, present: Tensor | None, given: Tensor | Hidden | None, batch: int, device: torch.device
) -> Tensor:
    """The mask [B] of rows that are there; ValueError when it has another shape or dtype, or names absent data."""
    if present is None:
        return torch.full((batch,), given is not None, device=device)
    if not isinstance(present, Tensor) or present.dtype != torch.bool or tuple(present.shape) != (batch,):
        got = f"{present.dtype} {tuple(present.shape)}" if isinstance(present, Tensor) else type(present).__name__
        raise ValueError(f"{name}: got {got}, expected a bool tensor of shape ({batch},)")
    if given is None and present.any():
        raise ValueError(f"{name}: got True rows without the data, expected {name.split('_')[0]} to be given")
    return present.to(device)
