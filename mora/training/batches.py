"""From rows of a data set to the tensors of a step: who is absent, in which order, which process takes what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from mora.data.dataset import Dataset
from mora.data.presence import Presence
from mora.runs.preparing import Preparing
from mora.system.workers import leave_signals


class Inputs(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Samples as the classifier takes them: an input for each tower, a flag for each, label, index.

    Args:
        dataset: the samples.
        present: which of its modalities each sample has, natural and simulated absence together.
        preparing: of the model.

    Raises ValueError for a modality of the data that the model has no tower for.
    """

    def __init__(self, dataset: Dataset, present: Presence, preparing: Preparing) -> None:
        preparing.check_data(f"{dataset.name}, {dataset.split}", present.modalities)
        self.dataset, self.present, self.preparing = dataset, present.of_towers(preparing.modalities), preparing

    def having(self, present: Presence) -> Inputs:
        """The same samples of which others lack something."""
        return Inputs(self.dataset, present, self.preparing)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row, there = (
            self.dataset[index],
            dict(zip(self.present.modalities, self.present.mask[index].tolist(), strict=True)),
        )
        given = {name: row.inputs.get(name) if has else None for name, has in there.items()}
        return {
            **{name: self.preparing.one(name, value) for name, value in given.items()},
            **{f"{name}_present": torch.tensor(value is not None) for name, value in given.items()},
            "label": row.label,
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
