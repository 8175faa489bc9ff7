"""A head on the embeddings of every tower, for samples that may lack a modality."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mora.adapters.first_step import begin_training
from mora.adapters.prompts import prompts_of
from mora.adapters.record import host_of, is_patched
from mora.heads import (
    KINDS,
    LEARNED,
    LINEAR,
    MISSING_EMBEDDINGS,
    SUBSTITUTE,
    classify,
    first_tensor,
    make_head,
)
from mora.methods.keeping import one_call
from mora.patterns import pattern_index
from mora.savings.encoder import Encoder
from mora.savings.options import Hidden, Savings
from mora.system.checks import one_of
from mora.towers.cutting import evaluating


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
        head: "linear"; "pattern-bias", a bias vector per presence pattern (which modalities a row has); "prototypes",
            cosines to learned class prototypes per pattern; "zero-shot", cosines to class names, not trained; "none":
            the embeddings themselves, each of length 1, zero where missing: `mora.heads`.
        missing_embedding: what stands in the place of a missing modality's embedding: "substitute", the substitute's;
            "learned", a vector [e] per modality that begins there; "zero". Rows that lack it pass no block with the
            last two.

    Raises ValueError for an unknown model, a tower whose substitute is not known, an unknown word, or `num_classes`
    below 1.
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
        head: str = LINEAR,
        missing_embedding: str = SUBSTITUTE,
    ) -> None:
        one_of("head", head, KINDS)
        one_of("missing_embedding", missing_embedding, MISSING_EMBEDDINGS)
        if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 1:
            raise ValueError(f"num_classes: got {num_classes!r}, expected an int of at least 1")
        super().__init__(model, savings, {"image": missing_image, "text": empty_text, **(missing or {})}, towers)
        clip = self.clip
        widths = {modality: tower.width(clip) for modality, tower in self.towers.items()}
        self.head: Any = make_head(head, widths, num_classes, next(clip.parameters()))
        self.num_classes, self.head_kind, self.missing_embedding = num_classes, head, missing_embedding
        self.learned = nn.ParameterDict()
        if missing_embedding == LEARNED:
            self.learned = nn.ParameterDict({m: nn.Parameter(self.embedded_substitute(m)[0]) for m in self.towers})

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
        features, there = self.features(image, text, image_present, text_present, inputs, present)
        return classify(self.head, features, there)

    def features(
        self,
        image: Tensor | Hidden | None = None,
        text: Tensor | Hidden | None = None,
        image_present: Tensor | None = None,
        text_present: Tensor | None = None,
        inputs: Mapping[str, Tensor | Hidden | None] | None = None,
        present: Mapping[str, Tensor | None] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(what the head sees [B, sum of e], which rows have each modality bool [B]); arguments as of `forward`."""
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
            there[modality] = presence(name, modality, masks.get(modality), rows, batch, first_tensor(self.head).device)
        check_some(there, names.values())
        with self.one_call():
            return self.embed(given, there), there

    def one_call(self) -> AbstractContextManager[object]:
        """A block in which W_eff of all towers is built once, where nobody asked to keep it for longer."""
        return one_call(self.clip, host_of(self.clip).groups) if is_patched(self.clip) else nullcontext()

    def embed(self, given: Mapping[str, Tensor | Hidden | None], present: Mapping[str, Tensor]) -> Tensor:
        """The embeddings of every modality side by side, [B, sum of e], in the head's dtype."""
        like, embedded = first_tensor(self.head), []
        prompted = prompts_of(self.clip) is not None
        patterns = pattern_index(torch.stack([*present.values()], dim=1)) if prompted else None
        for modality, runner in self.runners.items():
            rows = given.get(modality)
            dtype = rows.dtype if isinstance(rows, Tensor) else next(self.model.parameters()).dtype
            substitute, alone = self.substitute(modality, dtype), self.stand_in(modality)
            there = present[modality]
            embedded.append(runner.embed(self.model, rows, there, substitute, self.training, alone, patterns))
        dtype = embedded[0].dtype if torch.is_autocast_enabled(like.device.type) else like.dtype
        return torch.cat([embedding.to(dtype) for embedding in embedded], dim=-1)

    def stand_in(self, modality: str) -> Tensor | None:
        """What stands in the place of a missing embedding [1, e]; None where it is the substitute's."""
        if self.missing_embedding == SUBSTITUTE:
            return None
        if self.missing_embedding == LEARNED:
            return self.learned[modality][None]
        return first_tensor(self.head).new_zeros(1, self.towers[modality].width(self.clip))

    @torch.no_grad()
    def embedded_missing(self, modality: str) -> Tensor:
        """The embedding [1, e] of every row that lacks a modality, in eval, in the head's dtype."""
        alone = self.stand_in(modality)
        return self.embedded_substitute(modality) if alone is None else alone.detach()

    @torch.no_grad()
    def embedded_substitute(self, modality: str) -> Tensor:
        """The embedding [1, e] of a substitute, in the head's dtype; in eval, with everything else there."""
        prompts, like = prompts_of(self.clip), first_tensor(self.head)
        patterns = None if prompts is None else torch.tensor([prompts.lacking(modality)], device=like.device)
        with evaluating(self.model):
            return self.embed_rows(modality, self.missing(modality)[None], patterns).to(like.dtype)

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """What is trained beside the model, by name: "head.weight", "missing.image"."""
        named = {f"head.{name}": parameter for name, parameter in self.head.named_parameters()}
        return named | {f"missing.{modality}": parameter for modality, parameter in self.learned.items()}

    @torch.no_grad()
    def load_head(self, state: Mapping[str, Tensor]) -> None:
        """Copy what `head_state` gave of a classifier of the same kind into this one."""
        for name, target in self.head_state().items():
            target.copy_(state[name])

    def head_state(self) -> dict[str, Tensor]:
        """Tensors of the head, and of what stands for missing embeddings where that is learned: what a file holds."""
        learned = {f"missing.{modality}": parameter.detach() for modality, parameter in self.learned.items()}
        return {**self.head.state_dict(), **learned}


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
