"""Manifests: a CSV, JSONL or Parquet file with `image`, `text`, `label` and, optionally, `split`."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mora.data.dataset import SPLITS
from mora.data.images import LARGEST_IMAGE
from mora.data.modalities import in_order, modality
from mora.data.presence import PAIR
from mora.data.sources.cells import Cells
from mora.data.sources.columns import COLUMNS, READERS, others, read_columns, wanted
from mora.data.sources.labelled import SEPARATOR, Labelled
from mora.data.sources.rows import ABSENT, Columns, Rows, file_size
from mora.data.sources.source import Options, Source
from mora.system.files import read_bytes
from mora.system.messages import listed, printable, rows_of

UNLABELLED = "unlabelled"  # the only class of rows without labels


class ManifestSplit(Rows):
    """One split of a manifest; images are read from their files."""

    def __init__(
        self,
        path: Path,
        split: str,
        on_broken: str,
        *,
        classes: Sequence[str] | None,
        multi_label: bool | None,
        seed: int,
        extra_columns: bool,
        labelled: bool = True,
    ) -> None:
        table = read_manifest(path, extra_columns, labelled)
        parts = table.parts(seed)
        if labelled and classes is None and split != "all":
            table.refuse_unseen(parts)
        task = table.task(path.stem, classes, multi_label, 2 if labelled else 1)
        chosen = table.choose(split, parts)
        keys = [table.images[row] for row in chosen]
        self._files = [None if key is None else path.parent / key for key in keys]
        rows = [f"row {row + 1}" for row in chosen]
        columns = Columns(
            ids=[row if key is None else f"{row}: {printable(key)}" for row, key in zip(rows, keys, strict=True)],
            texts=[table.texts[row] for row in chosen],
            labels=table.encode(chosen, task),
            images=list(range(len(chosen))),
            sizes=[ABSENT if file is None else file_size(file, LARGEST_IMAGE) for file in self._files],
            others={
                name: Cells.of(modality(name), [cells[row] for row in chosen], path.parent, rows)
                for name, cells in table.others.items()
            },
            modalities=table.modalities or PAIR,
        )
        self._ids, self._keys = columns.ids, keys
        super().__init__(task, split, columns, on_broken)

    def read_image(self, source: int) -> bytes:
        file = self._files[source]
        if file is None:
            raise FileNotFoundError("the row has no image")
        return read_bytes(file, LARGEST_IMAGE)

    def image_file(self, source: int) -> Path | None:
        return self._files[source]

    def image_name(self, source: int) -> str:
        return self._ids[source]

    def pictures(self) -> Tensor:
        """Rows that name the same image show the same picture; `groups` keeps an image row for each of them."""
        number: dict[object, int] = {}
        sources = [self._sources[row] for row in self._columns.images]
        keys = [(one, None) if (key := self._keys[one]) is None else os.path.normpath(key) for one in sources]
        return torch.tensor([number.setdefault(key, len(number)) for key in keys], dtype=torch.int64)

    def files(self) -> list[Path]:
        cells = self._columns.others.values()
        found = [*self._files, *(one.file(row) for one in cells for row in range(len(one.keys)))]
        return [file for file in found if file is not None]


def is_manifest(source: str) -> bool:
    """Whether `source` is a file with the ending of a manifest."""
    path = Path(source)
    return path.is_file() and path.suffix.lower() in READERS


def manifest_splits(source: str, options: Options) -> tuple[str, ...]:
    """The splits a manifest has rows of."""
    parts = set(read_manifest(Path(source), options.extra_columns, labelled=False).parts(seed=0))
    return tuple(split for split in SPLITS if split in parts)


def read_manifest(path: Path, extra_columns: bool = False, labelled: bool = True) -> Labelled:
    """Every row of a manifest; ValueError that names the column, the rows or the line that is wrong.

    Unless `labelled`, one without a column of labels has a single class.
    """
    columns = read_columns(path)
    if not labelled and "label" not in columns:
        length = max((len(columns[name]) for name in wanted() if name in columns), default=0)
        columns["label"] = [UNLABELLED] * length
    _refuse_columns(path, list(columns), extra_columns)
    length = len(columns["label"])
    labels = [_labels(value) for value in columns["label"]]
    splits = [_word(value) or "" for value in columns["split"]] if "split" in columns else None
    if splits and "" in splits:
        empty = [row for row, word in enumerate(splits, 1) if not word]
        raise ValueError(f"{path}: got no split in {rows_of(empty)}, expected one in every row, or no column split")
    images = [_word(value) for value in columns.get("image", [None] * length)]
    _refuse_outside(path, "images", images)
    further: dict[str, list[str | None]] = {}
    for name in others():
        if name in columns:
            written = modality(name).written
            further[name] = [_text(value) if written else _word(value) for value in columns[name]]
            if not written:
                _refuse_outside(path, modality(name).plural, further[name])
    return Labelled(
        where=str(path),
        images=images,
        texts=[_text(value) for value in columns.get("text", [None] * length)],
        labels=labels,
        splits=splits,
        classes=None,
        several=any(len(several) > 1 for several in labels),
        others=further,
        modalities=in_order(name for name in columns if name in (*PAIR, *further)) if further else (),
    )


def _refuse_columns(path: Path, names: list[str], extra_columns: bool) -> None:
    unknown = [name for name in names if name not in wanted()]
    if unknown and not extra_columns:
        guess = difflib.get_close_matches(unknown[0], set(wanted()) - set(names), n=1, cutoff=0.5)
        hint = f"; did you mean {guess[0]!r}?" if guess else ""
        if len(names) == 1 and "label" in unknown[0]:
            raise ValueError(f"{path}: got one column {unknown[0]!r}, expected {listed(COLUMNS)}, separated by commas")
        raise ValueError(
            f"{path}: got the unknown columns {listed(map(repr, unknown))}, expected {listed(COLUMNS)}{hint}; "
            "extra_columns=True (--extra-columns) lets others be"
        )
    if "label" not in names:
        raise ValueError(
            f"{path}: got the columns {listed(names)}, expected label too: the class of each row, several between |"
        )


def _refuse_outside(path: Path, plural: str, images: list[str | None]) -> None:
    """A relative path stays in the manifest's folder; one that leaves it has to be written in full."""
    outside = [
        row for row, image in enumerate(images, 1)
        if image is not None and leaves_folder(image)
    ]  # fmt: skip
    if outside:
        raise ValueError(
            f"{path}: got {plural} outside the manifest's folder in {rows_of(outside)}, such as "
            f"{images[outside[0] - 1]!r}; expected paths below {path.parent}, or absolute ones"
        )


def leaves_folder(path: str) -> bool:
    """Whether a relative path leads out of the folder it is relative to."""
    return not os.path.isabs(path) and Path(os.path.normpath(path)).parts[:1] == (os.pardir,)


def _word(value: Any) -> str | None:
    """A path, label or split as text without surrounding blanks; None for null, NaN and blank."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 3.0 is what spreadsheets make of 3
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(value).strip() or None


def _text(value: Any) -> str | None:
    return None if _word(value) is None else str(value)


def _labels(value: Any) -> tuple[str, ...]:
    parts = value if isinstance(value, list) else (_word(value) or "").split(SEPARATOR)
    return tuple(dict.fromkeys(word for part in parts if (word := _word(part))))


def open_manifest(source: str, split: str, options: Options) -> ManifestSplit:
    """One split of a manifest."""
    return ManifestSplit(
        Path(source),
        split,
        options.on_broken,
        classes=options.classes,
        multi_label=options.multi_label,
        seed=options.seed,
        extra_columns=options.extra_columns,
        labelled=options.labelled,
    )


SOURCE = Source("a .csv, .jsonl or .parquet file", is_manifest, manifest_splits, open_manifest)
