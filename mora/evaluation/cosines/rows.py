"""Embeddings of a split, a row per sample: by modality, with presence."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from mora.data.dataset import Dataset
from mora.evaluation.embeddings import embed
from mora.runs.run import LoadedRun


class Embedded(NamedTuple):
    """A split embedded; `rows` float32 [N, e] by modality, the substitute's where a sample lacks it: see `present`.

    `pictures` int64 [N], which picture each sample shows; `labels` as of a data set.
    """

    rows: dict[str, Tensor]
    present: dict[str, Tensor]
    pictures: Tensor
    labels: Tensor

    def normalized(self) -> Embedded:
        """The same, each of length 1."""
        return self._replace(rows={modality: F.normalize(rows, dim=-1) for modality, rows in self.rows.items()})


def embed_rows(
    run: LoadedRun,
    dataset: Dataset,
    batch: int = 64,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Embedded:
    """One pass of what is there through the towers; arguments and errors as of `mora.evaluation.embeddings.embed`."""
    found = embed(run, dataset, batch, workers, progress)
    rows = {name: one[found.place[name]].float() for name, one in found.rows.items()}
    present = dataset.present().of_towers(rows).by_modality()
    return Embedded(rows, present, dataset.pictures(), found.labels)
