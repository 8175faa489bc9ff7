"""From rows of a data set to the tensors of a step: who is absent, in which order, which process takes what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from mora.data.dataset import Dataset
from mora.data.missing import IMAGE_MISSING, TEXT_MISSING
from mora.system.workers import leave_signals


class Inputs(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Samples as the classifier takes them: image [3, H, W], text [L], two flags, label, index.

    Args:
        dataset: the samples.
        lacks: int8 [N], natural and simulated absence: 0 complete, 1 text missing, 2 image missing.
        preprocess: a PIL image to [3, H, W].
        tokenize: texts to int64 [B, L].
        missing_image: [3, H, W] that stands for an absent image.
        empty_text: [L] that stands for an absent text.
    """

    def __init__(
        self,
        dataset: Dataset,
        lacks: Tensor,
        preprocess: Callable[[Any], Tensor],
        tokenize: Callable[[Sequence[str]], Tensor],
        missing_image: Tensor,
        empty_text: Tensor,
    ) -> None:
        self.dataset, self.lacks = dataset, lacks
        self.preprocess, self.tokenize = preprocess, tokenize
        self.missing_image, self.empty_text = missing_image, empty_text

    def lacking(self, lacks: Tensor) -> Inputs:
        """The same samples of which others lack something."""
        return Inputs(self.dataset, lacks, self.preprocess, self.tokenize, self.missing_image, self.empty_text)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample, lacks = self.dataset[index], int(self.lacks[index])
        image = None if lacks == IMAGE_MISSING else sample.image
        text = None if lacks == TEXT_MISSING else sample.text
        return {
            "image": self.missing_image if image is None else self.preprocess(image),
            "text": self.empty_text if text is None else self.tokenize([text])[0],
            "image_present": torch.tensor(image is not None),
            "text_present": torch.tensor(text is not None),
            "label": sample.label,
            "index": torch.tensor(index),
        }

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]] | ValueError:
        """What the loader asks for; the error of a sample that cannot be read, for a worker would wrap it."""
        try:
            return [self[index] for index in indices]
        except ValueError as error:
            return error


class Share(NamedTuple):
    """What one process takes of one forward pass of all processes.

    Attributes:
        rows: sample indices, at least one.
        counted: whether they count; False for a process that is left without rows and passes one along.
        everyones: sample indices of all processes together.
    """

    rows: list[int]
    counted: bool
    everyones: list[int]

    @property
    def total(self) -> int:
        """Rows of all processes together."""
        return len(self.everyones)


def epoch_order(rows: int, seed: int, epoch: int) -> Tensor:
    """The order of samples in an epoch (from 1), int64 [N]: it depends on seed and epoch alone."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def shares(order: Tensor, batch: int, processes: int, rank: int) -> list[Share]:
    """What process `rank` takes of every forward pass of an epoch; the last one may be smaller, none is repeated."""
    found = []
    for rows in order.split(batch * processes):
        own = rows[rank::processes].tolist()
        found.append(Share(own or rows[:1].tolist(), bool(own), rows.tolist()))
    return found


def loader(inputs: Any, batches: Sequence[Sequence[int]], workers: int, pin: bool) -> Iterator[dict[str, Tensor]]:
    """The batches as tensors, in order; reading takes nothing from torch's global generator.

    `inputs` gives samples one by one, or, with `__getitems__`, whole batches. Raises ValueError that names the image
    when one cannot be read, by worker processes too.
    """
    found = DataLoader(
        inputs,
        batch_sampler=batches,  # type: ignore[arg-type] # any iterable of index lists
        num_workers=workers,
        worker_init_fn=leave_signals,
        pin_memory=pin,
        generator=torch.Generator(),
        collate_fn=collate,
    )
    for batch in found:
        if isinstance(batch, ValueError):
            raise batch
        yield batch


def collate(samples: Any) -> Any:
    """Samples as one batch; a batch that is one already, or an error, as it is."""
    return default_collate(samples) if isinstance(samples, list) else samples
