"""What a raw folder holds, before its images are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mora.data.published import split_name
from mora.system.files import read_json
from mora.system.messages import listed


@dataclass
class RawRow:
    """One image file with its texts and label; `extra` are the further columns of the Arrow file."""

    image: Path
    texts: list[str]
    label: int | list[int]
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class RawSplit:
    """One split; `listed` counts its images before any is left out.

    `problems` names what is missing or broken so far, one line each; `textless` the samples that the published
    preparation leaves out because they have no text.
    """

    listed: int
    rows: list[RawRow] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    textless: list[str] = field(default_factory=list)


@dataclass
class Raw:
    """A raw folder: its splits, by our names, and the classes in the order of the labels."""

    splits: dict[str, RawSplit]
    classes: Sequence[str]


def read_split_file(path: Path) -> dict[str, list[str]]:
    """Sample names by split out of a `split.json`.

    ValueError for a split that is none, is absent, or shares a sample with another.
    """
    need(path, "the lists of samples by split")
    splits: dict[str, list[str]] = {}
    for word, names in read_json(path).items():
        split = split_name(word)
        if split is None or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(
                f"{path}: got the entry {word!r}, expected train, val (dev) and test, each a list of names"
            )
        splits[split] = names
    lacking = [split for split in ("train", "validation", "test") if split not in splits]
    if lacking:
        raise ValueError(f"{path}: got the splits {listed(splits)}, expected {listed(lacking)} too")
    refuse_repeated(path, splits)
    return splits


def refuse_repeated(path: Path, splits: dict[str, list[str]]) -> None:
    """ValueError when a sample is in two splits, or in one of them twice."""
    seen: dict[str, str] = {}
    repeated = []
    for split, names in splits.items():
        for name in names:
            if name in seen:
                repeated.append(f"{name} ({seen[name]}, {split})")
            seen[name] = split
    if repeated:
        raise ValueError(f"{path}: got {len(repeated):,} samples twice: {listed(repeated)}; expected each in one split")


def need(path: Path, what: str) -> None:
    """FileNotFoundError that says what was looked for, when `path` is no file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: got no such file, expected {what}")


def stays_inside(name: str) -> bool:
    """Whether a path written in a raw folder's files stays in that folder."""
    return is_text(name) and "\0" not in name and not Path(name).is_absolute() and ".." not in Path(name).parts


def is_text(value: str) -> bool:
    """Whether a text is whole: no half of a character, which JSON can write and no other file can."""
    return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)
