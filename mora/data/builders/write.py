"""One split as an Arrow IPC file: images read and decoded a batch at a time, so that memory stays small."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mora.data.builders.raw import RawRow, RawSplit
from mora.data.images import LARGEST_IMAGE, BrokenImageError, decode, progress
from mora.data.published import SPLIT_NAMES, Published
from mora.system.files import appearing, read_bytes
from mora.system.machine import need
from mora.system.messages import printable

BATCH = 128


def write_split(path: Path, split: str, found: RawSplit, data: Published, *, keep: bool) -> tuple[int, list[str]]:
    """Write the rows whose image decodes; return their number and a line for every image that does not.

    The file appears only when every image is whole and nothing was wrong before, or, with `keep`, in any case.
    """
    pa = need("pyarrow", "writing Arrow files")
    schema = _schema(data, found)
    broken: list[str] = []
    rows = 0
    for left in path.parent.glob(f".{path.name}.*"):  # of a run that was killed
        left.unlink(missing_ok=True)
    with appearing(path) as temporary:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
            for batch in _batches(found.rows, broken, split):
                columns = _columns(batch, SPLIT_NAMES[split][0], data)
                file.write_batch(pa.RecordBatch.from_pydict(columns, schema))
                rows += len(batch)
        if (broken or found.problems) and not keep:
            temporary.unlink()
    return rows, broken


def _batches(rows: list[RawRow], broken: list[str], label: str) -> Iterator[list[tuple[RawRow, bytes]]]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        chunks = (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))
        read = ((row, data) for chunk in chunks for row, data in zip(chunk, pool.map(_read, chunk), strict=True))
        batch = []
        for row, data in progress(read, len(rows), label):
            if isinstance(data, str):
                broken.append(data)
                continue
            batch.append((row, data))
            if len(batch) == BATCH:
                yield batch
                batch = []
        if batch:
            yield batch


def _read(row: RawRow) -> bytes | str:
    """The bytes of an image that decodes, or what is wrong with it."""
    name = printable(str(row.image))
    try:
        data = read_bytes(row.image, LARGEST_IMAGE)
        decode(data, name)
    except FileNotFoundError:
        return f"{name}: no such file"
    except OSError as error:
        return f"{name}: {error.strerror or error}"
    except BrokenImageError as error:
        return str(error)
    except ValueError as error:  # no regular file, too large, no path
        return f"{name}: {printable(str(error))}"
    return data


def _schema(data: Published, found: RawSplit) -> Any:
    import pyarrow as pa

    texts = pa.list_(pa.string())
    fields = [
        ("image", pa.binary()),
        (data.texts, texts),
        ("label", pa.list_(pa.int64()) if data.multi_label else pa.int64()),
    ]
    extra = found.rows[0].extra if found.rows else {}
    kinds = {"genres": texts, "image_id": pa.string()}
    return pa.schema([*fields, *((name, kinds[name]) for name in extra), ("split", pa.string())])


def _columns(batch: list[tuple[RawRow, bytes]], split: str, data: Published) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        "image": [image for _, image in batch],
        data.texts: [row.texts for row, _ in batch],
        "label": [row.label for row, _ in batch],
        "split": [split] * len(batch),
    }
    return columns | {name: [row.extra[name] for row, _ in batch] for name in batch[0][0].extra}
