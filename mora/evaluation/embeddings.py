"""Every image and text of a data set through its tower once; any missing table is then a choice of rows and a head.

In eval mode a row's embedding depends on that row alone, and a missing modality is one constant substitute. So
[image; text] under a table picks embeddings that are there already: the same as a forward pass, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from mora.classifier import MissingModalityClassifier
from mora.data.dataset import Dataset, Sample
from mora.data.missing import IMAGE_MISSING, TEXT_MISSING
from mora.data.views import Corrupted
from mora.keeping import keeping
from mora.system.workers import leave_signals

if TYPE_CHECKING:
    from mora.runs.run import LoadedRun

HEAD_ROWS = 8192


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
        head: the classifier's linear layer.
    """

    image: Tensor
    text: Tensor
    image_row: Tensor
    labels: Tensor
    groups: Tensor | None
    head: nn.Linear

    def __len__(self) -> int:
        return len(self.image_row)

    @torch.no_grad()
    def logits(self, lacks: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(sample indices [B], logits [B, C]) of all samples in order, a few thousand at a time.

        `lacks` [N] says what each sample lacks: 0 nothing, 1 its text, 2 its image; see `mora.data.per_sample`.
        """
        device = self.head.weight.device
        for index in torch.arange(len(self)).split(HEAD_ROWS):
            image = self.image_row[index].masked_fill(lacks[index] == IMAGE_MISSING, len(self.image) - 1)
            text = index.masked_fill(lacks[index] == TEXT_MISSING, len(self.text) - 1)
            features = torch.cat([self.image[image], self.text[text]], dim=-1)
            yield index, self.head(features.to(device))


@torch.no_grad()
def embed(
    run: LoadedRun,
    dataset: Dataset,
    batch: int = 64,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Embeddings:
    """One pass of every image and text that is there through the towers of `run.model`, in eval mode.

    Args:
        run: the trained classifier.
        dataset: one split.
        batch: samples at a time.
        workers: processes that read and preprocess; 0 does it here.
        progress: told the number of samples done, batch by batch.

    Raises ValueError when an image cannot be read, or a sample is not as `available()` says.
    """
    model = run.model.eval()
    available, image_row = dataset.available(), rows_of_images(dataset)
    wanted = first_of_each(image_row, available != IMAGE_MISSING)
    loader = torch.utils.data.DataLoader(
        Reader(dataset, run.preprocess, wanted),
        batch_size=batch,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=leave_signals,
    )
    with keeping(model):
        image = substitute(model, "image").repeat(int(image_row.max()) + 2, 1)
        text = substitute(model, "text").repeat(len(dataset) + 1, 1)
        for samples in loader:
            if errors := [sample for sample in samples if isinstance(sample, ValueError)]:
                raise errors[0]
            shown = [sample for sample in samples if sample.image is not None]
            read = [sample for sample in samples if sample.text is not None]
            check_presence(dataset, samples, available, wanted)
            if shown:
                rows = image_row[[sample.position for sample in shown]]
                image[rows] = tower(model, "image", torch.stack([sample.image for sample in shown]))
            if read:
                text[[sample.position for sample in read]] = tower(model, "text", run.tokenize([s.text for s in read]))
            if progress is not None:
                progress(len(samples))
    return Embeddings(image, text, image_row, dataset.labels(), dataset.groups(), model.head)


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


def tower(model: MissingModalityClassifier, modality: str, rows: Tensor) -> Tensor:
    """Embeddings [B, e] of one modality in the head's dtype, on the CPU."""
    weight = model.head.weight
    return model.embed_rows(modality, rows.to(weight.device)).to("cpu", weight.dtype)


def substitute(model: MissingModalityClassifier, modality: str) -> Tensor:
    """The embedding [1, e] of what stands for a missing image or text."""
    return tower(model, modality, model.missing(modality)[None])


def check_presence(dataset: Dataset, samples: list[Prepared], available: Tensor, wanted: Tensor) -> None:
    """Raise ValueError for a sample that lacks what `available()` says is there."""
    for sample in samples:
        lacks_text = sample.text is None and int(available[sample.position]) != TEXT_MISSING
        lacks_image = sample.image is None and bool(wanted[sample.position])
        if lacks_text or lacks_image:
            what = "text" if lacks_text else "image"
            name = dataset[sample.position].id
            raise ValueError(f"dataset: sample {name} has no {what}, expected one: available() says it is there")
