"""A data set whose texts and labels are in memory and whose images are read one at a time."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mora.data.dataset import Dataset, Sample, fingerprint, stamp_of
from mora.data.images import BrokenImageError, broken_images, decode
from mora.data.missing import IMAGE_MISSING, TEXT_MISSING
from mora.system.messages import listed

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Task:
    """What the labels of a data set mean: see `Dataset` for every field."""

    name: str
    classes: tuple[str, ...]
    multi_label: bool
    metric: str


@dataclass
class Columns:
    """Samples in order, as columns: `ids`, `texts` (None where missing), `labels` (see `Dataset.labels`).

    `images` gives the image row each sample shows. `sizes` has one entry per image row, in their order: its bytes,
    -1 where the image is missing, -2 where its file is.
    """

    ids: list[str]
    texts: list[str | None]
    labels: Tensor
    images: list[int]
    sizes: list[int]


ABSENT, NO_FILE = -1, -2
FINGERPRINT_VERSION = 1


class Rows(Dataset):
    """Base of every data set that is read from files; a subclass says how to read the bytes of one image row."""

    def __init__(self, task: Task, split: str, columns: Columns, on_broken: str) -> None:
        self.name, self.split, self.classes = task.name, split, task.classes
        self.multi_label, self.metric = task.multi_label, task.metric
        self._columns = columns
        self._sources = list(range(len(columns.sizes)))  # where image row i stands in the source
        self._refuse_empty_rows()
        self._refuse_absent_files(on_broken)
        if on_broken == "skip":
            self._leave_out_broken()
        self.fingerprint = self._fingerprint()

    @abstractmethod
    def read_image(self, source: int) -> bytes:
        """The encoded bytes of the image that stands at `source`; OSError when they cannot be read."""

    @abstractmethod
    def image_name(self, source: int) -> str:
        """What messages call that image."""

    @abstractmethod
    def files(self) -> Iterable[Path]:
        """The files that images are read from."""

    def stamp(self) -> str:
        return stamp_of(self.fingerprint, self.files())

    def __len__(self) -> int:
        return len(self._columns.ids)

    def __getitem__(self, index: int) -> Sample:
        columns = self._columns
        row = columns.images[index]
        try:
            image = None if columns.sizes[row] == ABSENT else self._decode(row)
        except BrokenImageError as error:
            raise BrokenImageError(
                f"{error}; mora data check lists all such images, on_broken='skip' leaves them out"
            ) from error
        return Sample(image, columns.texts[index], columns.labels[index], columns.ids[index])

    def available(self) -> Tensor:
        columns = self._columns
        found = [
            TEXT_MISSING if text is None else IMAGE_MISSING if columns.sizes[row] == ABSENT else 0
            for text, row in zip(columns.texts, columns.images, strict=True)
        ]
        return torch.tensor(found, dtype=torch.int8)

    def labels(self) -> Tensor:
        return self._columns.labels

    def groups(self) -> Tensor | None:
        if self._columns.images == list(range(self.rows)):
            return None
        return torch.tensor(self._columns.images, dtype=torch.int64)

    @property
    def rows(self) -> int:
        """Number of image rows; a row whose every sample is absent counts, as in the official tables."""
        return len(self._columns.sizes)

    def _decode(self, row: int) -> Image.Image:
        source = self._sources[row]
        name = self.image_name(source)
        try:
            data = self.read_image(source)
        except OSError as error:
            raise BrokenImageError(f"{name}: the file cannot be read: {error.strerror or error}") from error
        return decode(data, name)

    def _refuse_empty_rows(self) -> None:
        columns = self._columns
        empty = [
            columns.ids[index]
            for index, (text, row) in enumerate(zip(columns.texts, columns.images, strict=True))
            if text is None and columns.sizes[row] == ABSENT
        ]
        if empty:
            raise ValueError(f"{self.name}, {self.split}: got {listed(empty)} without image and text, expected one")

    def _refuse_absent_files(self, on_broken: str) -> None:
        absent = [row for row, size in enumerate(self._columns.sizes) if size == NO_FILE]
        if absent and on_broken == "raise":
            names = listed(self.image_name(self._sources[row]) for row in absent)
            raise ValueError(
                f"{self.name}, {self.split}: {len(absent):,} of {self.rows:,} image files do not exist: {names}; "
                "mend the paths, leave the cell empty where an image is missing, or skip broken images"
            )

    def _leave_out_broken(self) -> None:
        columns = self._columns
        rows = [row for row, size in enumerate(columns.sizes) if size != ABSENT]
        found = dict(broken_images(self._decode, rows))
        if not found:
            return
        self.broken = tuple(found.values())
        warnings.warn(f"{self.name}, {self.split}: left out {len(found):,} images: {listed(self.broken)}", stacklevel=4)
        kept_rows = [row for row in range(self.rows) if row not in found]
        moved = {row: place for place, row in enumerate(kept_rows)}
        kept = [index for index, row in enumerate(columns.images) if row in moved]
        if not kept:
            raise ValueError(f"{self.name}, {self.split}: no image can be read: {listed(self.broken)}")
        self._sources = [self._sources[row] for row in kept_rows]
        self._columns = Columns(
            ids=[columns.ids[index] for index in kept],
            texts=[columns.texts[index] for index in kept],
            labels=columns.labels[kept],
            images=[moved[columns.images[index]] for index in kept],
            sizes=[columns.sizes[row] for row in kept_rows],
        )

    def _fingerprint(self) -> str:
        columns = self._columns
        samples = zip(columns.ids, columns.texts, columns.labels.tolist(), columns.images, strict=True)
        return fingerprint([FINGERPRINT_VERSION, self.split, columns.sizes, *samples])
