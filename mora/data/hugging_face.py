"""Folders that Hugging Face `datasets` saved (`save_to_disk`): a Dataset or a DatasetDict of image, text and label."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mora.data.dataset import SPLITS
from mora.data.labelled import SEPARATOR, Labelled
from mora.data.published import split_name
from mora.data.rows import ABSENT, NO_FILE, Columns, Rows
from mora.system.files import digest
from mora.system.messages import listed

COLUMNS = ("image", "text", "label")
INSTALL = "pip install 'mora-kernels[train]'"


class HuggingFaceSplit(Rows):
    """One split of a saved data set; images stay in its memory-mapped Arrow files, or in the files these name.

    `image` is of the feature `Image`, or a path, or bytes; `text` a string; `label` a `ClassLabel`, an int, a string
    (several between `|`), or a list of these. The splits are a DatasetDict's keys or a column `split`; without either
    the rows are divided by content. Other columns are ignored.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        name: str | None,
        on_broken: str,
        *,
        classes: Sequence[str] | None,
        multi_label: bool | None,
        seed: int,
    ) -> None:
        self._folder, (self._data, splits) = folder, _load(folder)
        table = _labelled(folder, self._data, splits)
        parts = table.parts(seed)
        if classes is None and split != "all":
            table.refuse_unseen(parts)
        task = table.task(name or folder.name, classes, multi_label)
        self._chosen = table.choose(split, parts)
        sizes = _sizes(self._data, folder)
        columns = Columns(
            ids=[f"row {row + 1}" for row in self._chosen],
            texts=[table.texts[row] for row in self._chosen],
            labels=table.encode(self._chosen, task),
            images=list(range(len(self._chosen))),
            sizes=[sizes[row] for row in self._chosen],
        )
        super().__init__(task, split, columns, on_broken)

    def read_image(self, source: int) -> bytes:
        image = self._data[self._chosen[source]]["image"]
        data, path = (image["bytes"], image["path"]) if isinstance(image, dict) else (image, image)
        if isinstance(data, bytes):
            return data
        return (self._folder / str(path)).read_bytes()

    def files(self) -> list[Path]:
        """Everything in the folder: Arrow files, and images that they name."""
        return sorted(path for path in self._folder.rglob("*") if path.is_file())

    def image_name(self, source: int) -> str:
        return f"{self._folder} row {self._chosen[source] + 1}"


def hugging_face_splits(folder: Path) -> tuple[str, ...]:
    """The splits a saved data set has rows of."""
    data, splits = _load(folder)
    parts = set(_labelled(folder, data, splits).parts(seed=0))
    return tuple(split for split in SPLITS if split in parts)


def _load(folder: Path) -> tuple[Any, list[str] | None]:
    """All rows, images not decoded, and the key of the DatasetDict each comes from."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"reading saved data sets needs datasets: {INSTALL}") from error
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # datasets raises what json, pyarrow and fsspec raise
        raise ValueError(f"{folder}: got a data set that cannot be loaded: {error}") from error
    parts = loaded if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
    splits = [key for key, part in parts.items() for _ in range(len(part))]
    unknown = [key for key in parts if key and split_name(key) is None]
    if unknown:
        raise ValueError(
            f"{folder}: got the splits {listed(map(repr, unknown))}, expected train, validation (val, dev) or test"
        )
    prepared = []
    for part in parts.values():
        lacking = [column for column in COLUMNS if column not in part.column_names]
        if lacking:
            raise ValueError(f"{folder}: got the columns {listed(part.column_names)}, expected {listed(lacking)} too")
        is_image = isinstance(part.features["image"], datasets.Image)
        prepared.append(part.cast_column("image", datasets.Image(decode=False)) if is_image else part)
    try:
        return datasets.concatenate_datasets(prepared), None if "" in parts else splits
    except ValueError as error:
        raise ValueError(f"{folder}: got splits with different columns ({error}), expected the same in each") from error


def _labelled(folder: Path, data: Any, splits: list[str] | None) -> Labelled:
    import pyarrow as pa

    kind = data.data["text"].type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
        raise ValueError(f"{folder}: got text of type {kind}, expected string")
    texts = [text if text is not None and text.strip() else None for text in data.data["text"].to_pylist()]
    feature = data.features["label"]
    inner = getattr(feature, "feature", feature)
    names = getattr(inner, "names", None)
    labels = [_names(value, names) for value in data.data["label"].to_pylist()]
    if splits is None and "split" in data.column_names:
        splits = [str(word or "") for word in data.data["split"].to_pylist()]
    return Labelled(
        where=str(folder),
        images=_keys(data, contents=splits is None),
        texts=texts,
        labels=labels,
        splits=splits,
        classes=tuple(names) if names else None,
        several=inner is not feature or any(len(several) > 1 for several in labels),
    )


def _names(value: Any, names: list[str] | None) -> tuple[str, ...]:
    """Label names of one row; none for null and for -1, which `datasets` writes where a ClassLabel is unknown."""
    values: list[Any] = value if isinstance(value, list) else [value]
    if isinstance(value, str):
        values = list(value.split(SEPARATOR))
    if names is not None:
        return tuple(names[index] for index in values if index is not None and index >= 0)
    return tuple(dict.fromkeys(str(label).strip() for label in values if label is not None and str(label).strip()))


def _column(data: Any) -> tuple[Any, Any]:
    """The image column as (bytes or None, paths or None), each an Arrow column."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = data.data["image"]
    if pa.types.is_struct(column.type):
        return pc.struct_field(column, "bytes"), pc.struct_field(column, "path")
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    return (None, column) if is_text else (column, None)


def _keys(data: Any, contents: bool) -> list[str | None]:
    """For each row its image's path, or, with `contents`, a digest of its bytes; None where it has no image."""
    encoded, paths = _column(data)
    keys: list[str | None] = [None] * len(data) if paths is None else [path or None for path in paths.to_pylist()]
    if encoded is not None:
        for row, value in enumerate(encoded):
            if value.is_valid:
                keys[row] = digest(value.as_py()) if contents else "in the data set"
    return keys


def _sizes(data: Any, folder: Path) -> list[int]:
    import pyarrow.compute as pc

    encoded, paths = _column(data)
    lengths = [None] * len(data) if encoded is None else pc.binary_length(encoded).to_pylist()
    places = [None] * len(data) if paths is None else paths.to_pylist()
    sizes = []
    for length, place in zip(lengths, places, strict=True):
        if length is not None:
            sizes.append(length)
        elif not place:
            sizes.append(ABSENT)
        else:
            file = folder / place
            sizes.append(os.stat(file).st_size if file.is_file() else NO_FILE)
    return sizes
