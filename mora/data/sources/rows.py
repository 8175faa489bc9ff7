"""A data set whose texts and labels are in memory and whose images are read one at a time."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mora.data.dataset import Dataset, Row, Sample, compact_json, fingerprint, stamp_of
from mora.data.images import LARGEST_IMAGE, BrokenImageError, Images, decode, survey
from mora.data.modality import BrokenInputError
from mora.data.presence import PAIR, Presence
from mora.data.sources.cells import ABSENT, NO_FILE, Cells, file_size, reason_of, refuse_absent
from mora.system.messages import listed

if TYPE_CHECKING:
    from PIL import Image


__all__ = ["ABSENT", "NO_FILE", "Columns", "Rows", "Task", "file_size", "refuse_vast"]

FINGERPRINT_VERSION = 1
MOST_CLASSES = 1 << 20
MOST_LABELS = 1 << 30  # values of a table of labels: 4 GB


@dataclass(frozen=True)
class Task:
    """What the labels of a data set mean: see `Dataset` for every field."""

    name: str
    classes: tuple[str, ...]
    multi_label: bool
    metric: str

    def __post_init__(self) -> None:
        """ValueError for more classes than a head is made for, one that comes twice, or one that is no text."""
        if len(self.classes) > MOST_CLASSES:
            raise ValueError(f"{self.name}: got {len(self.classes):,} classes, expected at most {MOST_CLASSES:,}")
        if len(set(self.classes)) < len(self.classes):
            twice = [name for name, count in Counter(self.classes).items() if count > 1]
            raise ValueError(f"{self.name}: got the classes {listed(map(repr, twice))} twice, expected each once")
        halves = [name for name in self.classes if not name.isascii() and any("\ud800" <= c <= "\udfff" for c in name)]
        if halves:
            raise ValueError(f"{self.name}: got half a character in the classes {listed(map(ascii, halves))}")


@dataclass
class Columns:
    """Samples in order, as columns: `ids`, `texts` (None where missing), `labels` (see `Dataset.labels`).

    `images` gives the image row each sample shows. `sizes` has one entry per image row, in their order: its bytes,
    -1 where the image is missing, -2 where its file is, or is none that can be read. `others` are further modalities,
    where every sample has an image row of its own; `modalities` those that the source has, image and text alone unless
    it says so.
    """

    ids: list[str]
    texts: list[str | None]
    labels: Tensor
    images: list[int]
    sizes: list[int]
    others: dict[str, Cells] = field(default_factory=dict)
    modalities: tuple[str, ...] = PAIR


def refuse_vast(where: str, rows: int, classes: int) -> None:
    """ValueError for more labels, rows times classes, than memory is for."""
    if rows * classes > MOST_LABELS:
        raise ValueError(
            f"{where}: got {rows:,} rows of {classes:,} classes each, expected at most {MOST_LABELS:,} labels in all"
        )


class Rows(Dataset):
    """Base of every data set that is read from files; a subclass says how to read the bytes of one image row."""

    def __init__(self, task: Task, split: str, columns: Columns, on_broken: str) -> None:
        self.name, self.split, self.classes = task.name, split, task.classes
        self.multi_label, self.metric = task.multi_label, task.metric
        self._columns, self.modalities = columns, columns.modalities
        self.remarks: dict[str, tuple[str, ...]] = {}
        self._sources = list(range(len(columns.sizes)))  # where image row i stands in the source
        self._refuse_empty_rows()
        if on_broken == "skip":
            self._leave_out_broken()
        else:
            self._refuse_absent_files()
        self.fingerprint = self._fingerprint()

    @abstractmethod
    def read_image(self, source: int) -> bytes:
        """The encoded bytes of the image that stands at `source`; OSError or ValueError when they cannot be read."""

    def image_file(self, source: int) -> Path | None:
        """The file of the image that stands at `source`; None where it has none of its own."""
        return None

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

    def __getitem__(self, index: int) -> Sample | Row:
        columns = self._columns
        row = columns.images[index]
        try:
            image = None if columns.sizes[row] == ABSENT else self._decode(row)
            found = {name: cells.read(index) for name, cells in columns.others.items()}
        except BrokenInputError as error:
            plural = "images" if isinstance(error, BrokenImageError) else "files"
            raise type(error)(
                f"{error}; mora data check lists all such {plural}, on_broken='skip' leaves them out"
            ) from error
        if self.modalities == PAIR:
            return Sample(image, columns.texts[index], columns.labels[index], columns.ids[index])
        found |= {"image": image, "text": columns.texts[index]}
        return Row({name: found[name] for name in self.modalities}, columns.labels[index], columns.ids[index])

    def present(self) -> Presence:
        columns = self._columns
        there = {
            "image": torch.tensor([columns.sizes[row] != ABSENT for row in columns.images], dtype=torch.bool),
            "text": torch.tensor([text is not None for text in columns.texts], dtype=torch.bool),
            **{name: cells.present for name, cells in columns.others.items()},
        }
        return Presence.of({name: there[name] for name in self.modalities})

    def ids(self) -> list[str]:
        return list(self._columns.ids)

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
        except (OSError, ValueError) as error:
            raise BrokenImageError(f"{name}: the file cannot be read: {reason_of(error)}") from error
        return decode(data, name)

    def _refuse_empty_rows(self) -> None:
        empty = [self._columns.ids[row] for row in (~self.present().mask.any(dim=1)).nonzero().flatten().tolist()]
        if empty:
            names = " and ".join((", ".join(self.modalities[:-1]), self.modalities[-1]))
            raise ValueError(f"{self.name}, {self.split}: got {listed(empty)} without {names}, expected one")

    def _refuse_absent_files(self) -> None:
        where = f"{self.name}, {self.split}"
        sources = [self._sources[row] for row, size in enumerate(self._columns.sizes) if size == NO_FILE]
        names = [(self.image_name(source), self.image_file(source)) for source in sources]
        refuse_absent(where, "image", "images", self.rows, names, LARGEST_IMAGE)
        for cells in self._columns.others.values():
            cells.refuse_absent(where)

    def _leave_out_broken(self) -> None:
        columns = self._columns
        rows = [row for row, size in enumerate(columns.sizes) if size != ABSENT]
        found = list(survey(self._decode, rows, Images()))
        self.plain = tuple(self.image_name(self._sources[one.row]) for one in found if one.remark)
        broken = {one.row: one.broken for one in found if one.broken is not None}
        what = f"{len(broken):,} images" if broken else ""
        for name, cells in columns.others.items():
            there = cells.present.nonzero().flatten().tolist()
            found = list(survey(cells.read, there, cells.modality))
            self.remarks[name] = tuple(f"{cells.name(one.row)}: {one.remark}" for one in found if one.remark)
            worse = {one.row: one.broken for one in found if one.broken is not None}
            what += f"{' and ' * bool(what)}{len(worse):,} {cells.modality.plural}" if worse else ""
            broken = {**worse, **broken}
        if not broken:
            return
        self.broken = tuple(broken.values())
        warnings.warn(f"{self.name}, {self.split}: left out {what}: {listed(self.broken)}", stacklevel=4)
        kept_rows = [row for row in range(self.rows) if row not in broken]
        moved = {row: place for place, row in enumerate(kept_rows)}
        kept = [index for index, row in enumerate(columns.images) if row in moved]
        if not kept:
            raise ValueError(f"{self.name}, {self.split}: no image can be read: {listed(self.broken)}")
        self._sources = [self._sources[row] for row in kept_rows]
        self._columns = replace(
            columns,
            ids=[columns.ids[index] for index in kept],
            texts=[columns.texts[index] for index in kept],
            labels=columns.labels[kept],
            images=[moved[columns.images[index]] for index in kept],
            sizes=[columns.sizes[row] for row in kept_rows],
            others={name: cells.kept(kept) for name, cells in columns.others.items()},
        )

    def _fingerprint(self) -> str:
        columns = self._columns
        several = self.multi_label
        labels: Iterable[Any] = multi_hot_json(columns.labels) if several else columns.labels.tolist()
        samples = zip(columns.ids, columns.texts, labels, columns.images, strict=True)
        rows = (
            b"[%b,%b,%b,%d]" % (compact_json(name), compact_json(text), label, image)
            for name, text, label, image in samples
        )
        more = (cells.defined() for cells in columns.others.values())
        return fingerprint(chain([FINGERPRINT_VERSION, self.split, columns.sizes], rows if several else samples, more))


def multi_hot_json(labels: Tensor) -> Iterator[bytes]:
    """The JSON of every row of multi-hot labels; a Python float for each of them would take gigabytes."""
    for row in labels:
        values = [b"0.0"] * len(row)
        for place in row.nonzero().flatten().tolist():
            values[place] = b"1.0"
        yield b"[%b]" % b",".join(values)
