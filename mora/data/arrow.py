"""The official layout: `{train,val,test}.arrow` in a folder, Arrow IPC files read through memory maps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mora.data.dataset import SPLITS
from mora.data.published import PUBLISHED, SPLIT_NAMES, published_name
from mora.data.rows import ABSENT, Columns, Rows, Task
from mora.system.files import read_json
from mora.system.messages import listed

if TYPE_CHECKING:
    import pyarrow as pa

INSTALL = "pip install 'mora-kernels[train]'"
DESCRIPTION = "dataset.json"  # what `mora data build` leaves beside the files


def split_file(folder: Path, split: str) -> Path | None:
    """The Arrow file of a split: `val.arrow`, or `{dataset}_dev.arrow` as the prompt-learning papers call it."""
    for word in SPLIT_NAMES.get(split, ()):
        named = folder / f"{word}.arrow"
        others = sorted(folder.glob(f"*_{word}.arrow"))
        if named.is_file():
            return named
        if len(others) == 1:
            return others[0]
    return None


def arrow_splits(folder: Path) -> tuple[str, ...]:
    """The splits a folder has an Arrow file of."""
    return tuple(split for split in SPLITS if split_file(folder, split))


class ArrowSplit(Rows):
    """One split in the official layout; each (image, text) pair is a sample.

    Columns: `image` binary (encoded), `text` or `plots` list<string>, `label` int64 or multi-hot list<int64>, for some
    data sets `image_id`. A null image or text is naturally missing, a blank text too. An empty list of texts
    makes no sample, as published; its row still counts in a missing table.
    """

    def __init__(
        self, folder: Path, split: str, name: str | None, on_broken: str, classes: Sequence[str] | None = None
    ) -> None:
        path = split_file(folder, split)
        if path is None:
            found = listed(arrow_splits(folder)) or "none"
            raise ValueError(f"split: got {split!r}, expected one that {folder} has an Arrow file of: {found}")
        self._path, self._opened, self._process = path, None, 0
        table = self._table()
        names = set(table.column_names)
        texts = "plots" if "plots" in names else "text"
        lacking = [column for column in ("image", texts, "label") if column not in names]
        if lacking:
            raise ValueError(f"{path}: got the columns {listed(sorted(names))}, expected {listed(lacking)} too")
        labels = _labels(table["label"], path)
        task = _task(folder, name, labels, texts, tuple(classes or ()))
        if not task.multi_label and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(task.classes):
            raise ValueError(
                f"{path}: got labels from {int(labels.min())} to {int(labels.max())}, "
                f"expected 0 to {len(task.classes) - 1}, the classes of {task.name}"
            )
        super().__init__(task, split, _columns(table, texts, labels), on_broken)

    def read_image(self, source: int) -> bytes:
        data: bytes = self._table()["image"][source].as_py()
        return data

    def files(self) -> list[Path]:
        return [self._path]

    def image_name(self, source: int) -> str:
        return f"{self._path} row {source + 1}"

    def _table(self) -> pa.Table:
        """The file, mapped into memory once per process: a map is not carried over a fork or a pickle."""
        if self._opened is None or self._process != os.getpid():
            self._opened, self._process = _map(self._path), os.getpid()
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


def _map(path: Path) -> pa.Table:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise ImportError(f"reading Arrow files needs pyarrow: {INSTALL}") from error
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: got {error}, expected a whole Arrow IPC file (not a stream)") from error


def _labels(column: Any, path: Path) -> Tensor:
    """int64 [rows] or multi-hot float32 [rows, C]; ValueError when values are null or rows differ in length."""
    values = column.to_pylist()
    if None in values:
        raise ValueError(f"{path}: got no label in row {values.index(None) + 1}, expected one in every row")
    if values and isinstance(values[0], list):
        lengths = {len(value) for value in values}
        if len(lengths) > 1 or not {entry for value in values for entry in value} <= {0, 1}:
            raise ValueError(
                f"{path}: got labels of {listed(sorted(lengths))} values, expected one length of 0s and 1s"
            )
        return torch.tensor(values, dtype=torch.float32)
    if not all(isinstance(value, int) for value in values):
        raise ValueError(f"{path}: got labels of type {column.type}, expected int64 or list<int64>")
    return torch.tensor(values, dtype=torch.int64)


def _task(folder: Path, name: str | None, labels: Tensor, texts: str, classes: tuple[str, ...]) -> Task:
    """Name, classes and metric: from the arguments, `dataset.json`, the folder's name or its columns.

    `classes` names the labels where neither the files nor the publication do.
    """
    described_name, described_classes = _description(folder)
    known = name or described_name or published_name(folder.name) or ("mmimdb" if texts == "plots" else None)
    multi_label = labels.ndim == 2
    data = PUBLISHED.get(published_name(str(known)) or "")
    if data is None:
        number = labels.shape[1] if multi_label else _highest_label(folder) + 1
        classes = described_classes or classes or tuple(map(str, range(number)))
        if multi_label and len(classes) != number:
            raise ValueError(f"{folder}: got {number} labels per row, expected {len(classes)}, one for each class")
        return Task(str(known or folder.name), classes, multi_label, "macro_f1" if multi_label else "accuracy")
    numbered = [f"class {index}" for index in range(data.num_classes)]
    classes = tuple(described_classes or _class_index(folder) or data.classes or classes or numbered)
    width = labels.shape[1] if multi_label else len(classes)
    if multi_label != data.multi_label or width != len(classes):
        kind = f"{width} labels per row" if multi_label else "one label per row"
        expected = f"{data.num_classes} {'labels per row' if data.multi_label else 'classes, one label per row'}"
        raise ValueError(f"{folder}: got {kind}, expected {expected}, as {known} has; pass another name for other data")
    return Task(published_name(str(known)) or str(known), classes, multi_label, data.metric)


def _description(folder: Path) -> tuple[str | None, tuple[str, ...]]:
    """Name and classes out of `dataset.json`, where there is one; ValueError when they are something else."""
    path = folder / DESCRIPTION
    content = read_json(path) if path.is_file() else {}
    name, classes = content.get("name"), content.get("classes", [])
    if (
        not isinstance(name, str | None)
        or not isinstance(classes, list)
        or not all(isinstance(c, str) for c in classes)
    ):
        raise ValueError(f"{path}: got name {name!r} and classes of another form, expected a text and a list of texts")
    return name, tuple(classes)


def _class_index(folder: Path) -> tuple[str, ...]:
    """Class names in the order of `class_idx.json`, where that file of Food-101 lies beside the Arrow files."""
    path = folder / "class_idx.json"
    index = read_json(path) if path.is_file() else {}
    return tuple(sorted(index, key=index.__getitem__))


def _highest_label(folder: Path) -> int:
    import pyarrow.compute as pc

    files = [file for split in SPLITS if (file := split_file(folder, split))]
    return max(pc.max(_map(file)["label"]).as_py() or 0 for file in files)


def _columns(table: pa.Table, texts: str, labels: Tensor) -> Columns:
    import pyarrow.compute as pc

    sizes = [ABSENT if size is None else size for size in pc.binary_length(table["image"]).to_pylist()]
    keys = table["image_id"].to_pylist() if "image_id" in table.column_names else [None] * len(sizes)
    ids, words, images = [], [], []
    for row, found in enumerate(table[texts].to_pylist()):
        several = [None] if found is None else [found] if isinstance(found, str) else found
        name = f"row {row + 1}" if keys[row] is None else f"row {row + 1}: {keys[row]}"
        for number, text in enumerate(several):
            ids.append(f"{name}, text {number + 1}" if len(several) > 1 else name)
            words.append(text if text is not None and text.strip() else None)
            images.append(row)
    return Columns(ids, words, labels[images], images, sizes)
