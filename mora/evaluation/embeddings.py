"""Every image and text of a data set through its tower once; any missing table is then a choice of rows and a head.

In eval mode a row's embedding depends on that row alone, and a missing modality is one constant substitute. So
[image; text] under a table picks embeddings that are there already: the same as a forward pass, up to rounding. Where
prompts say what else a row has, it has two embeddings: with the other modality, and without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from mora.classifier import MissingModalityClassifier
from mora.data.dataset import Dataset, Sample
from mora.data.missing import IMAGE_MISSING, TEXT_MISSING
from mora.data.views import Corrupted
from mora.heads import classify, first_tensor
from mora.keeping import keeping
from mora.prompts import prompts_of
from mora.savings import Hidden, PrefixCache
from mora.system.workers import leave_signals

if TYPE_CHECKING:
    from mora.runs.run import LoadedRun

HEAD_ROWS = 8192
Rows = dict[str, tuple[Tensor, Tensor | Hidden]]  # by modality: numbers of samples [B], what a tower takes of them


class Prepared(NamedTuple):
    """One sample ready for the towers: its image preprocessed, unless absent or embedded with an earlier sample."""

    position: int
    image: Tensor | None
    text: str | None


class Reader(torch.utils.data.Dataset[Prepared | ValueError]):
    """Reads and preprocesses samples, in worker processes where asked.

    A sample that cannot be read is its error, returned: raised in a worker it would come wrapped in a traceback.

    Args:
        dataset: where the samples come from.
        preprocess: a PIL image to [3, H, W].
        wanted: bool [N], the samples whose image is to be embedded.
    """

    def __init__(self, dataset: Dataset, preprocess: Callable[[Any], Tensor], wanted: Tensor) -> None:
        self.dataset, self.preprocess, self.wanted = dataset, preprocess, wanted

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Prepared | ValueError:
        try:
            sample: Sample = self.dataset[index]
        except ValueError as error:
            return error
        image = self.preprocess(sample.image) if sample.image is not None and bool(self.wanted[index]) else None
        return Prepared(index, image, sample.text)


@dataclass(frozen=True)
class Embeddings:
    """What the towers say about one split, on the CPU; `len` is its number of samples.

    Attributes:
        image: [R + 1, e], one per image, the substitute's last.
        text: [N + 1, e], one per sample, the substitute's last.
        image_row: int64 [N], the row of `image` that each sample shows.
        labels: int64 [N] or float32 [N, C].
        groups: int64 [N] where several samples show one image, else None.
        head: the classifier's.
        alone: `image` and `text` of rows that lack the other modality, where that makes a difference; else None.
    """

    image: Tensor
    text: Tensor
    image_row: Tensor
    labels: Tensor
    groups: Tensor | None
    head: nn.Module
    alone: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.image_row)

    @torch.no_grad()
    def logits(self, lacks: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(sample indices [B], logits [B, C]) of all samples in order, a few thousand at a time.

        `lacks` [N] says what each sample lacks: 0 nothing, 1 its text, 2 its image; see `mora.data.per_sample`.
        """
        device = first_tensor(self.head).device
        for index in torch.arange(len(self)).split(HEAD_ROWS):
            image = self.image_row[index].masked_fill(lacks[index] == IMAGE_MISSING, len(self.image) - 1)
            text = index.masked_fill(lacks[index] == TEXT_MISSING, len(self.text) - 1)
            parts = [self.image[image], self.text[text]]
            if self.alone is not None:
                lone = self.alone[0][image], self.alone[1][text]
                for place, lacking in enumerate((TEXT_MISSING, IMAGE_MISSING)):
                    parts[place] = torch.where((lacks[index] == lacking)[:, None], lone[place], parts[place])
            features = torch.cat(parts, dim=-1)
            present = {"image": lacks[index] != IMAGE_MISSING, "text": lacks[index] != TEXT_MISSING}
            there = {modality: mask.to(device) for modality, mask in present.items()}
            yield index, classify(self.head, features.to(device), there)


@torch.no_grad()
def embed(
    run: LoadedRun,
    dataset: Dataset,
    batch: int = 64,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
    cache: PrefixCache | None = None,
) -> Embeddings:
    """One pass of every image and text that is there through the towers of `run.model`, in eval mode.

    Args:
        run: the trained classifier.
        dataset: one split.
        batch: samples at a time.
        workers: processes that read and preprocess; 0 does it here.
        progress: told the number of samples done, batch by batch.
        cache: rows of the split past the frozen blocks of `run.model`, read instead of the samples.

    Raises ValueError when an image cannot be read, or a sample is not as `available()` says.
    """
    model = run.model.eval()
    available, image_row = dataset.available(), rows_of_images(dataset)
    wanted = first_of_each(image_row, available != IMAGE_MISSING)
    there = {"image": wanted, "text": available != TEXT_MISSING}
    prompts = prompts_of(model.clip)
    with keeping(model):
        image = model.embedded_missing("image").cpu().repeat(int(image_row.max()) + 2, 1)
        text = model.embedded_missing("text").cpu().repeat(len(dataset) + 1, 1)
        alone = None if prompts is None else (image.clone(), text.clone())
        batches = read(run, dataset, there, batch, workers) if cache is None else kept(cache, there, batch)
        for count, rows in batches:
            for modality, (index, given) in rows.items():
                place, target = (image_row[index], image) if modality == "image" else (index, text)
                target[place] = tower(model, modality, given)
                if prompts is not None and alone is not None:
                    lone, other = (alone[0], "text") if modality == "image" else (alone[1], "image")
                    lone[place] = tower(model, modality, given, prompts.lacking(other))
            if progress is not None:
                progress(count)
    return Embeddings(image, text, image_row, dataset.labels(), dataset.groups(), model.head, alone)


def read(
    run: LoadedRun, dataset: Dataset, there: Mapping[str, Tensor], batch: int, workers: int
) -> Iterator[tuple[int, Rows]]:
    """(samples done, inputs of those that are there by modality, with their numbers), batch by batch."""
    loader = torch.utils.data.DataLoader(
        Reader(dataset, run.preprocess, there["image"]),
        batch_size=batch,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=leave_signals,
    )
    for samples in loader:
        if errors := [sample for sample in samples if isinstance(sample, ValueError)]:
            raise errors[0]
        check_presence(dataset, samples, there)
        rows: Rows = {}
        if shown := [sample for sample in samples if sample.image is not None]:
            rows["image"] = numbers(shown), torch.stack([sample.image for sample in shown])
        if told := [sample for sample in samples if sample.text is not None]:
            rows["text"] = numbers(told), run.tokenize([sample.text for sample in told])
        yield len(samples), rows


def kept(cache: PrefixCache, there: Mapping[str, Tensor], batch: int) -> Iterator[tuple[int, Rows]]:
    """The same from rows past the frozen blocks."""
    for index in torch.arange(len(cache)).split(batch):
        chosen = {modality: index[mask[index]] for modality, mask in there.items()}
        yield len(index), {m: (rows, cache.take(m, rows)) for m, rows in chosen.items() if len(rows)}


def numbers(samples: list[Prepared]) -> Tensor:
    """The positions of samples in their data set, int64 [B]."""
    return torch.tensor([sample.position for sample in samples])


def rows_of_images(dataset: Dataset) -> Tensor:
    """Which image each sample shows, int64 [N]; corruption makes every sample's image its own."""
    groups = None if isinstance(dataset, Corrupted) else dataset.groups()
    return torch.arange(len(dataset)) if groups is None else groups


def first_of_each(rows: Tensor, there: Tensor) -> Tensor:
    """The first sample of every row among those that are there, bool [N]."""
    wanted, seen = torch.zeros_like(there), set()
    for index in there.nonzero().flatten().tolist():
        if (row := int(rows[index])) not in seen:
            seen.add(row)
            wanted[index] = True
    return wanted


def tower(model: MissingModalityClassifier, modality: str, rows: Tensor | Hidden, pattern: int | None = None) -> Tensor:
    """Embeddings [B, e] of one modality in the head's dtype, on the CPU; of rows of a pattern, where that says much."""
    like = first_tensor(model.head)
    patterns = None if pattern is None else torch.full((len(rows),), pattern, device=like.device)
    return model.embed_rows(modality, rows.to(like.device), patterns).to("cpu", like.dtype)


def check_presence(dataset: Dataset, samples: list[Prepared], there: Mapping[str, Tensor]) -> None:
    """Raise ValueError for a sample that lacks what `available()` says is there."""
    for sample in samples:
        lacks_text = sample.text is None and bool(there["text"][sample.position])
        lacks_image = sample.image is None and bool(there["image"][sample.position])
        if lacks_text or lacks_image:
            what = "text" if lacks_text else "image"
            name = dataset[sample.position].id
            raise ValueError(f"dataset: sample {name} has no {what}, expected one: available() says it is there")
