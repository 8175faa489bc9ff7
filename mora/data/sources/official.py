"""The official layout: `{train,val,test}.arrow` in a folder, Arrow IPC files read through memory maps."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mora.data.dataset import SPLITS
from mora.data.published import PUBLISHED, SPLIT_NAMES, published_name
from mora.data.sources.rows import ABSENT, MOST_CLASSES, Columns, Rows, Task, refuse_vast
from mora.data.sources.source import Source
from mora.system.files import read_json, regular_file
from mora.system.machine import need
from mora.system.messages import listed, printable

if TYPE_CHECKING:
    import pyarrow as pa

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
        _refuse_damaged(table, path)
        names = set(table.column_names)
        texts = "plots" if "plots" in names else "text"
        lacking = [column for column in ("image", texts, "label") if column not in names]
        if lacking:
            raise ValueError(f"{path}: got the columns {listed(sorted(names))}, expected {listed(lacking)} too")
        _check_types(table, texts, path)
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
    pa = need("pyarrow", "reading Arrow files")
    regular_file(path)
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: got {error}, expected a whole Arrow IPC file (not a stream)") from error


def _refuse_damaged(table: pa.Table, path: Path) -> None:
    """ValueError for columns that point out of their file, which a look at the values would follow, or no UTF-8."""
    import pyarrow as pa

    try:
        table.validate(full=True)
    except pa.ArrowException as error:
        raise ValueError(f"{path}: got {error}, expected a whole Arrow IPC file (not a stream)") from error
    repeated = sorted(name for name, count in Counter(table.column_names).items() if count > 1)
    if repeated:
        raise ValueError(f"{path}: got the columns {listed(repeated)} twice, expected each once")


def _check_types(table: pa.Table, texts: str, path: Path) -> None:
    """ValueError for a column of another type than the official layout's."""
    import pyarrow as pa

    types = pa.types

    def is_text(kind: Any) -> bool:
        return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind))

    def is_number(kind: Any) -> bool:
        return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))

    def is_list_of(kind: Any, test: Callable[[Any], bool]) -> bool:
        return bool((types.is_list(kind) or types.is_large_list(kind)) and test(kind.value_type))

    image, text, label = (table.schema.field(name).type for name in ("image", texts, "label"))
    if not (types.is_binary(image) or types.is_large_binary(image) or types.is_null(image)):
        raise ValueError(f"{path}: got image of type {image}, expected binary: the bytes of encoded images")
    if not (is_text(text) or is_list_of(text, is_text)):
        raise ValueError(f"{path}: got {texts} of type {text}, expected string or list<string>")
    if not (types.is_integer(label) or types.is_null(label) or is_list_of(label, is_number)):
        raise ValueError(f"{path}: got labels of type {label}, expected int64 or list<int64>")


def _labels(column: Any, path: Path) -> Tensor:
    """int64 [rows] or multi-hot float32 [rows, C]; ValueError when values are null or rows differ in length."""
    import pyarrow.compute as pc

    if hasattr(column.type, "value_type"):
        refuse_vast(str(path), 1, sum(size or 0 for size in pc.list_value_length(column).to_pylist()))
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
    if not all(type(number) is int for number in index.values()):
        raise ValueError(f"{path}: got numbers of another kind, expected a whole number for each class")
    return tuple(sorted(index, key=index.__getitem__))


def _highest_label(folder: Path) -> int:
    import pyarrow as pa
    import pyarrow.compute as pc

    highest = 0
    for path in (file for split in SPLITS if (file := split_file(folder, split))):
        table = _map(path)
        kind = table.schema.field("label").type if table.column_names.count("label") == 1 else None
        if kind is None or not (pa.types.is_integer(kind) or pa.types.is_null(kind)):
            raise ValueError(f"{path}: got labels of type {kind}, expected int64, as in the folder's other files")
        highest = max(highest, pc.max(table["label"]).as_py() or 0)
    if highest >= MOST_CLASSES:
        raise ValueError(f"{folder}: got the label {highest:,}, expected at most {MOST_CLASSES - 1:,}")
    return highest


def _columns(table: pa.Table, texts: str, labels: Tensor) -> Columns:
    import pyarrow.compute as pc

    sizes = [ABSENT if size is None else size for size in pc.binary_length(table["image"]).to_pylist()]
    keys = table["image_id"].to_pylist() if "image_id" in table.column_names else [None] * len(sizes)
    ids, words, images = [], [], []
    for row, found in enumerate(table[texts].to_pylist()):
        several = [None] if found is None else [found] if isinstance(found, str) else found
        name = f"row {row + 1}" if keys[row] is None else f"row {row + 1}: {printable(str(keys[row]))}"
        for number, text in enumerate(several):
            ids.append(f"{name}, text {number + 1}" if len(several) > 1 else name)
            words.append(text if text is not None and text.strip() else None)
            images.append(row)
    return Columns(ids, words, labels[images], images, sizes)


SOURCE = Source(
    form="a folder of train.arrow, val.arrow, test.arrow",
    matches=lambda source: Path(source).is_dir() and any(Path(source).glob("*.arrow")),
    splits=lambda source, options: arrow_splits(Path(source)),
    open=lambda source, split, options: ArrowSplit(
        Path(source), split, options.name, options.on_broken, options.classes
    ),
    takes_name=True,
)
