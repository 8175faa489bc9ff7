"""A data set seen otherwise: some of its samples, or all of them damaged; labels and absence stay what they are."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from mora.data.corruption import Corruption
from mora.data.dataset import Dataset, Row, Sample, fingerprint
from mora.data.presence import Presence


class View(Dataset):
    """Base: everything as in `dataset`; its fingerprint too, so that its missing tables fit."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.name, self.split, self.classes = dataset.name, dataset.split, dataset.classes
        self.multi_label, self.metric = dataset.multi_label, dataset.metric
        self.fingerprint, self.broken, self.plain = dataset.fingerprint, dataset.broken, dataset.plain
        self.modalities, self.remarks = dataset.modalities, dataset.remarks

    def __len__(self) -> int:
        return len(self.dataset)

    def present(self) -> Presence:
        return self.dataset.present()

    def labels(self) -> Tensor:
        return self.dataset.labels()

    def groups(self) -> Tensor | None:
        return self.dataset.groups()

    def ids(self) -> list[str]:
        return self.dataset.ids()

    def pictures(self) -> Tensor:
        return self.dataset.pictures()

    @property
    def rows(self) -> int:
        """As in `Dataset`: those of the whole."""
        return self.dataset.rows


class Subset(View):
    """Some samples of a data set, `index` int64 [n], in the order given."""

    def __init__(self, dataset: Dataset, index: Tensor) -> None:
        super().__init__(dataset)
        self.index = index

    def stamp(self) -> str:
        return fingerprint([self.dataset.stamp(), self.index.tolist()])

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Sample | Row:
        return self.dataset[int(self.index[index])]

    def present(self) -> Presence:
        return self.dataset.present().rows(self.index)

    def labels(self) -> Tensor:
        return self.dataset.labels()[self.index]

    def groups(self) -> Tensor | None:
        groups = self.dataset.groups()
        return None if groups is None else groups[self.index]

    def ids(self) -> list[str]:
        names = self.dataset.ids()
        return [names[index] for index in self.index.tolist()]

    def pictures(self) -> Tensor:
        return self.dataset.pictures()[self.index]


def thinned(dataset: Dataset, limit: int | None) -> Dataset:
    """At most `limit` samples, evenly spread over the data set; the data set itself when it has no more."""
    if limit is None or limit >= len(dataset):
        return dataset
    return Subset(dataset, torch.arange(limit) * len(dataset) // limit)


class Rescored(View):
    """A data set scored by another metric."""

    def __init__(self, dataset: Dataset, metric: str) -> None:
        super().__init__(dataset)
        self.metric = metric

    def stamp(self) -> str:
        return self.dataset.stamp()

    def __getitem__(self, index: int) -> Sample | Row:
        return self.dataset[index]


class Corrupted(View):
    """A data set whose images and texts are damaged as they are read; other modalities stay whole."""

    def __init__(self, dataset: Dataset, corruption: Corruption) -> None:
        super().__init__(dataset)
        self.corruption = corruption

    def stamp(self) -> str:
        return fingerprint([self.dataset.stamp(), asdict(self.corruption)])

    def __getitem__(self, index: int) -> Sample | Row:
        row = self.dataset[index]
        damaged: dict[str, Any] = {
            name: how(row.inputs[name], row.id)
            for name, how in (("image", self.corruption.image), ("text", self.corruption.text))
            if row.inputs.get(name) is not None
        }
        if isinstance(row, Sample):
            return row._replace(**damaged)
        return Row({**row.inputs, **damaged}, row.label, row.id)
