"""Manifests: a CSV, JSONL or Parquet file with `image`, `text`, `label` and, optionally, `split`."""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mora.data.dataset import SPLITS
from mora.data.labelled import SEPARATOR, Labelled
from mora.data.rows import ABSENT, NO_FILE, Columns, Rows
from mora.system.messages import listed, rows_of

COLUMNS = ("image", "text", "label", "split")
INSTALL = "pip install 'mora-kernels[train]'"


class ManifestSplit(Rows):
    """One split of a manifest; images are read from their files."""

    def __init__(
        self,
        path: Path,
        split: str,
        name: str | None,
        on_broken: str,
        *,
        classes: Sequence[str] | None,
        multi_label: bool | None,
        seed: int,
        extra_columns: bool,
    ) -> None:
        table = read_manifest(path, extra_columns)
        parts = table.parts(seed)
        if classes is None and split != "all":
            table.refuse_unseen(parts)
        task = table.task(name or path.stem, classes, multi_label)
        chosen = table.choose(split, parts)
        keys = [table.images[row] for row in chosen]
        self._files = [None if key is None else path.parent / key for key in keys]
        columns = Columns(
            ids=[
                f"row {row + 1}" if key is None else f"row {row + 1}: {key}"
                for row, key in zip(chosen, keys, strict=True)
            ],
            texts=[table.texts[row] for row in chosen],
            labels=table.encode(chosen, task),
            images=list(range(len(chosen))),
            sizes=[ABSENT if file is None else _size(file) for file in self._files],
        )
        self._ids = columns.ids
        super().__init__(task, split, columns, on_broken)

    def read_image(self, source: int) -> bytes:
        file = self._files[source]
        if file is None:
            raise FileNotFoundError("the row has no image")
        return file.read_bytes()

    def image_name(self, source: int) -> str:
        return self._ids[source]

    def files(self) -> list[Path]:
        return [file for file in self._files if file is not None]


def _size(file: Path) -> int:
    try:
        return os.stat(file).st_size if file.is_file() else NO_FILE
    except OSError:  # a name too long for the file system, a folder that may not be entered
        return NO_FILE


def manifest_splits(path: Path, extra_columns: bool) -> tuple[str, ...]:
    """The splits a manifest has rows of."""
    parts = set(read_manifest(path, extra_columns).parts(seed=0))
    return tuple(split for split in SPLITS if split in parts)


def read_manifest(path: Path, extra_columns: bool = False) -> Labelled:
    """Every row of a manifest; ValueError that names the column, the rows or the line that is wrong."""
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    columns = readers[path.suffix.lower()](path)
    _refuse_columns(path, list(columns), extra_columns)
    length = len(columns["label"])
    labels = [_labels(value) for value in columns["label"]]
    splits = [_word(value) or "" for value in columns["split"]] if "split" in columns else None
    if splits and "" in splits:
        empty = [row for row, word in enumerate(splits, 1) if not word]
        raise ValueError(f"{path}: got no split in {rows_of(empty)}, expected one in every row, or no column split")
    images = [_word(value) for value in columns.get("image", [None] * length)]
    _refuse_outside(path, images)
    return Labelled(
        where=str(path),
        images=images,
        texts=[_text(value) for value in columns.get("text", [None] * length)],
        labels=labels,
        splits=splits,
        classes=None,
        several=any(len(several) > 1 for several in labels),
    )


def _refuse_columns(path: Path, names: list[str], extra_columns: bool) -> None:
    unknown = [name for name in names if name not in COLUMNS]
    if unknown and not extra_columns:
        guess = difflib.get_close_matches(unknown[0], set(COLUMNS) - set(names), n=1, cutoff=0.5)
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


def _refuse_outside(path: Path, images: list[str | None]) -> None:
    """A relative path stays in the manifest's folder; one that leaves it has to be written in full."""
    outside = [
        row for row, image in enumerate(images, 1)
        if image is not None and not os.path.isabs(image) and Path(os.path.normpath(image)).parts[0] == os.pardir
    ]  # fmt: skip
    if outside:
        raise ValueError(
            f"{path}: got images outside the manifest's folder in {rows_of(outside)}, such as "
            f"{images[outside[0] - 1]!r}; expected paths below {path.parent}, or absolute ones"
        )


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


def _read_csv(path: Path) -> dict[str, list[Any]]:
    try:
        import pyarrow as pa
        from pyarrow import csv
    except ImportError as error:
        raise ImportError(f"reading manifests needs pyarrow: {INSTALL}") from error
    if not path.read_bytes()[:4096].strip():
        raise ValueError(f"{path}: got an empty file, expected a line with the names of the columns: image,text,label")
    try:
        table = csv.read_csv(
            path,
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=csv.ConvertOptions(column_types=dict.fromkeys(COLUMNS, pa.string())),
        )
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: got a file that is not CSV in UTF-8 ({error})") from error
    return _columns(path, table)


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"reading manifests needs pyarrow: {INSTALL}") from error
    try:
        table = parquet.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: got a damaged Parquet file ({error}), expected a whole one") from error
    for name in ("image", "text"):
        if name in table.column_names and not _is_text(table.schema.field(name).type):
            raise ValueError(f"{path}: got {name} of type {table.schema.field(name).type}, expected string")
    return _columns(path, table)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)) or (
        pa.types.is_dictionary(kind) and _is_text(kind.value_type)
    )


def _columns(path: Path, table: Any) -> dict[str, list[Any]]:
    names = table.column_names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: got the columns {listed(twice)} twice, expected each once")
    return {name: table[name].to_pylist() if name in COLUMNS else [] for name in names}


def _read_jsonl(path: Path) -> dict[str, list[Any]]:
    rows: list[dict[str, Any]] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: got a file that is not UTF-8 ({error})") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path}: got no JSON in line {number} ({error}), expected an object") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}: got {type(row).__name__} in line {number}, expected a JSON object")
        for name in ("image", "text"):
            if not isinstance(row.get(name), (str, type(None))):
                raise ValueError(
                    f"{path}: got {name} of type {type(row[name]).__name__} in line {number}, expected text or null"
                )
        if isinstance(row.get("label"), dict):
            raise ValueError(
                f"{path}: got label of type dict in line {number}, expected text, a number, or a list of these"
            )
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: got no rows, expected a JSON object in every line")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}
