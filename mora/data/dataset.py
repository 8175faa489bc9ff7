"""What every data set looks like to training and evaluation; `mora.data.open` opens one of any kind."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.utils.data
from torch import Tensor

from mora.data.presence import PAIR, Presence

if TYPE_CHECKING:
    from PIL import Image

SPLITS = ("train", "validation", "test")
ON_BROKEN = ("raise", "skip")


class Sample(NamedTuple):
    """One row: `image` RGB or None where missing; `text` or None where missing; `label`; `id`, unique in its split.

    `label` is int64 [] for single-label tasks and float32 [C], multi-hot, for multi-label ones.
    """

    image: Image.Image | None
    text: str | None
    label: Tensor
    id: str

    @property
    def inputs(self) -> dict[str, Any]:
        """What there is by modality, None where missing: as every row has it, of whatever modalities."""
        return {"image": self.image, "text": self.text}


class Row(NamedTuple):
    """One row of other modalities than image and text alone: `inputs` by modality, None where missing; see `Sample`."""

    inputs: Mapping[str, Any]
    label: Tensor
    id: str


class Dataset(torch.utils.data.Dataset[Any], ABC):
    """One split of a data set; picklable, and safe to read from forked or spawned workers.

    A row is anything with `inputs`, `label` and `id`: a `Sample` where `modalities` are image and text, else a `Row`.
    A data set of other modalities has `modalities` and `present`, one of image and text `available`.

    Attributes:
        name: of the data set, the same for every split.
        split: `"train"`, `"validation"`, `"test"`, or `"all"` for a source that was not split.
        classes: names of the labels, in one order for every split of a source.
        multi_label: whether a row may have several labels.
        metric: `"accuracy"`, `"macro_f1"`, `"auroc"` or `"recall_at_1"`: what the data set is scored by.
        fingerprint: hexadecimal SHA-256 of what defines the rows: their order, texts, labels, and the size in bytes
            of every image. Two data sets of one fingerprint can share a missing table.
        broken: one message for every image that was left out because it could not be read.
        plain: the name of every image of nearly one colour, where all were decoded to leave out the broken ones.
        remarks: by further modality, what stands out about its inputs, where all were decoded.
        modalities: what a row may have, in one order for every split of a source.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    multi_label: bool
    metric: str
    fingerprint: str
    broken: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    remarks: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    modalities: tuple[str, ...] = PAIR

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Any:
        """Row `index`, decoded; ValueError that names the input when it cannot be read."""

    def available(self) -> Tensor:
        """Natural absence of image and text, int8 [N]: 0 complete, 1 text missing, 2 image missing; decodes nothing.

        Raises ValueError where there are other modalities: `present` tells of them.
        """
        if type(self).present is Dataset.present:
            raise NotImplementedError(f"{type(self).__name__}: has neither available nor present, expected one")
        return self.present().codes()

    def present(self) -> Presence:
        """Which modalities each row has by itself; decodes nothing."""
        return Presence.of_codes(self.available())

    @abstractmethod
    def labels(self) -> Tensor:
        """Labels, int64 [N] or multi-hot float32 [N, C]; decodes nothing."""

    def groups(self) -> Tensor | None:
        """For each sample the row of the image it shows, int64 [N]; None where every sample has an image of its own.

        MM-IMDb repeats a movie for each of its plots. Missing tables have one value per image row: `rows` of them.
        """
        return None

    def ids(self) -> list[str]:
        """The `id` of every sample, in order; here by reading them, where nothing tells it before."""
        return [self[index].id for index in range(len(self))]

    def pictures(self) -> Tensor:
        """Which picture each sample shows, int64 [N]: the texts of samples of one number are captions of one picture.

        By default that of `groups`; a manifest, whose samples have image rows of their own, goes by the image's path.
        """
        groups = self.groups()
        return torch.arange(len(self)) if groups is None else groups

    def stamp(self) -> str:
        """What changes whenever a sample does: the fingerprint, and size and time of change of every file behind it.

        Rows derived from samples are kept under it; a file that was only touched counts as changed.
        """
        return self.fingerprint

    @property
    def rows(self) -> int:
        """Number of image rows, which is the length of a missing table."""
        return len(self)


def fingerprint(parts: Iterable[object]) -> str:
    """SHA-256, in hexadecimal, over the JSON of every part; bytes are JSON already."""
    state = hashlib.sha256()
    for part in parts:
        state.update(part if isinstance(part, bytes) else compact_json(part))
        state.update(b"\n")
    return state.hexdigest()


def compact_json(value: object) -> bytes:
    """`value` as JSON without blanks, in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def stamp_of(fingerprint: str, files: Iterable[Path]) -> str:
    """SHA-256, in hexadecimal, of a fingerprint with the size and the time of change of some files."""
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.exists()]
    return hashlib.sha256(json.dumps([fingerprint, stats]).encode()).hexdigest()
