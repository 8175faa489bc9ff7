"""The columns of a manifest's file: CSV, JSONL or Parquet, each read strictly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mora.data.modalities import known, modality
from mora.data.published import SPLIT_NAMES
from mora.data.sources.comma_separated import columns_of
from mora.system.files import LARGEST_TEXT, parse_json, read_text, regular_file
from mora.system.machine import need
from mora.system.messages import listed

COLUMNS = ("image", "text", "label", "split")
MOST_ROWS = 1 << 27
BATCH = 256  # rows decoded at a time


def others() -> tuple[str, ...]:
    """Columns of further modalities, those registered beside image and text."""
    return tuple(name for name in known() if name not in COLUMNS)


def wanted() -> tuple[str, ...]:
    """Every column that means something."""
    return (*COLUMNS, *others())


def read_columns(path: Path) -> dict[str, list[Any]]:
    """The cells of every column by name, in rows; columns that mean nothing here are there by name only.

    Raises ValueError that names the line, or the row, that is wrong; OSError where the file cannot be read.
    """
    return READERS[path.suffix.lower()](path)


def _read_csv(path: Path) -> dict[str, list[Any]]:
    text = read_text(path)
    if not text[:4096].strip():
        raise ValueError(f"{path}: got an empty file, expected a line with the names of the columns: image,text,label")
    splits = [word for words in SPLIT_NAMES.values() for word in words]
    keys = {"image": (), "label": (), "split": splits, **{m: () for m in others() if not modality(m).written}}
    try:
        names, cells = columns_of(text, wanted(), keys)
    except ValueError as error:
        raise ValueError(f"{path}: got a file that is not CSV in UTF-8 ({error})") from error
    _refuse_repeated(path, names)
    return dict(zip(names, cells, strict=True))


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    need("pyarrow", "reading Parquet")
    import pyarrow as pa
    from pyarrow import parquet

    regular_file(path)
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _refuse_repeated(path, names)
            _refuse_vast(file.metadata)
            for name in set(wanted()) & set(names):
                check_type(name, file.schema_arrow.field(name).type)
            return _decoded(file, names)
    except (pa.ArrowException, OSError, MemoryError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(f"{path}: got a damaged Parquet file ({reason}), expected a whole one") from error
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from error


def _decoded(file: Any, names: list[str]) -> dict[str, list[Any]]:
    """The values of the columns that count, a few rows at a time: a dictionary does not say how much it unpacks to."""
    chosen, size = [name for name in names if name in wanted()], 0
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for batch in file.iter_batches(batch_size=BATCH, columns=chosen):
        batch.validate(full=True)
        size += batch.nbytes
        if size > LARGEST_TEXT:
            raise MemoryError(f"more than {LARGEST_TEXT:,} bytes unpacked")
        for name in chosen:
            columns[name] += batch[name].to_pylist()
    return columns


def _refuse_vast(metadata: Any) -> None:
    """MemoryError for a file that says it unpacks to more than a table of text has."""
    size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    if metadata.num_rows > MOST_ROWS or size > LARGEST_TEXT:
        raise MemoryError(
            f"{metadata.num_rows:,} rows of {size:,} bytes, expected at most {MOST_ROWS:,} of {LARGEST_TEXT:,}"
        )


def check_type(name: str, kind: Any) -> None:
    """TypeError for a column whose values are of a type that has no meaning here."""
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(kind):
        return check_type(name, kind.value_type)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind):
        return None
    if name in ("image", "text", *others()):
        raise TypeError(f"got {name} of type {kind}, expected string")
    if name == "label" and (types.is_list(kind) or types.is_large_list(kind)) and not types.is_nested(kind.value_type):
        return check_type("label", kind.value_type)
    if types.is_nested(kind) or types.is_binary(kind) or types.is_large_binary(kind):
        raise TypeError(f"got {name} of type {kind}, expected string, a number, or a list of these")
    return None


def _refuse_repeated(path: Path, names: Sequence[str]) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(f"{path}: got the columns {listed(twice)} twice, expected each once")


def _read_jsonl(path: Path) -> dict[str, list[Any]]:
    rows: list[dict[str, Any]] = []
    names: dict[str, None] = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            row = parse_json(line, f"{path}: line {number}")
            _check_row(row, f"{path}: got {{}} in line {number}, expected {{}}")
            names.update(dict.fromkeys(row))
            rows.append(row)
    if not rows:
        raise ValueError(f"{path}: got no rows, expected a JSON object in every line")
    return {name: [row.get(name) for row in rows] if name in wanted() else [] for name in names}


def _check_row(row: object, form: str) -> None:
    """ValueError, in the words of `form`, for what is no row."""
    if not isinstance(row, dict):
        raise ValueError(form.format(type(row).__name__, "a JSON object"))
    for name in ("image", "text", *others()):
        if not isinstance(row.get(name), (str, type(None))):
            raise ValueError(form.format(f"{name} of type {type(row[name]).__name__}", "text or null"))
    label = row.get("label")
    nested = next(
        (value for value in (label if isinstance(label, list) else ()) if isinstance(value, (dict, list))), None
    )
    if isinstance(label, dict) or nested is not None:
        kind = "dict" if nested is None else f"list of {type(nested).__name__}"
        raise ValueError(form.format(f"label of type {kind}", "text, a number, or a list of these"))


READERS = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
