"""Where rows are kept: in memory, or in a safetensors file that is filled row by row and mapped into memory.

Beside `image.safetensors` lies `image.crc32`, a number per row, written once the row is on disk: 0 means that it is not
there. A kill at any moment leaves rows that are whole, and rows that do not count.
"""

from __future__ import annotations

import errno
import json
import math
import os
import zlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mora.savings.options import Hidden

NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
ALIGNMENT = 64


class Layout(NamedTuple):
    """The rows of one modality.

    Attributes:
        rows: how many; the last one is the substitute's.
        shape: of one row, [L, d] or [e].
        dtype: as stored.
        tokens: token ids of a text, L; 0 where rows have none.
    """

    rows: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    tokens: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * self.dtype.itemsize

    def size(self, rows: int) -> int:
        """Bytes of some rows with their tokens."""
        return rows * (self.row_bytes + 8 * (self.tokens + 1))

    def header(self) -> bytes:
        """The head of a safetensors file of three tensors: rows, tokens, ends."""
        rows, tokens = self.rows * self.row_bytes, 8 * self.rows * self.tokens
        content = {
            "rows": {
                "dtype": NAMES[self.dtype],
                "shape": [self.rows, *self.shape],
                "data_offsets": [0, rows],
            },
            "tokens": {"dtype": "I64", "shape": [self.rows, self.tokens], "data_offsets": [rows, rows + tokens]},
            "ends": {
                "dtype": "I64",
                "shape": [self.rows],
                "data_offsets": [rows + tokens, rows + tokens + 8 * self.rows],
            },
        }
        text = json.dumps(content).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        return len(text).to_bytes(8, "little") + text

    @property
    def file_bytes(self) -> int:
        """Bytes of the file."""
        return len(self.header()) + self.size(self.rows)


class Store(ABC):
    """Rows of one modality, some of them there."""

    layout: Layout
    rows: Tensor
    tokens: Tensor
    ends: Tensor

    @abstractmethod
    def complete(self, index: Tensor) -> Tensor:
        """Which of some rows are there, bool [K]."""

    @abstractmethod
    def write(self, index: Tensor, hidden: Hidden, ends: Tensor) -> None:
        """Put rows there: hidden [K, L', ...] of at most L tokens; what is behind them counts as zero."""

    def read(self, index: Tensor, multiple: int) -> Hidden:
        """Some rows that are there, texts cut after the longest one's end, rounded up to `multiple` (0: not cut)."""
        if not self.layout.tokens:
            return Hidden(self.rows.index_select(0, index))
        length = self.layout.tokens
        if multiple:
            length = min(length, -(-(int(self.ends[index].max()) + 1) // multiple) * multiple)
        tokens = self.tokens[:, :length].index_select(0, index)
        rows = self.rows if self.rows.dim() == 2 else self.rows[:, :length]
        return Hidden(rows.index_select(0, index), tokens)


class MemoryStore(Store):
    """Rows in memory; what is never written takes none."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.rows = torch.zeros(layout.rows, *layout.shape, dtype=layout.dtype)
        self.tokens = torch.zeros(layout.rows, layout.tokens, dtype=torch.int64)
        self.ends = torch.zeros(layout.rows, dtype=torch.int64)
        self.there = torch.zeros(layout.rows, dtype=torch.bool)

    def complete(self, index: Tensor) -> Tensor:
        return self.there[index]

    def write(self, index: Tensor, hidden: Hidden, ends: Tensor) -> None:
        rows = stored(hidden.rows, self.layout.dtype)
        place = self.rows[:, : rows.shape[1]] if rows.dim() > 2 else self.rows
        place[index] = rows
        if hidden.tokens is not None:
            self.tokens[index, : hidden.tokens.shape[1]] = hidden.tokens.cpu()
        self.ends[index] = ends.cpu()
        self.there[index] = True


class FileStore(Store):
    """Rows in a file that several processes read and fill.

    Raises ValueError when the files are not as `layout` says.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path, self.layout = path, layout
        self.open()

    @staticmethod
    def create(path: Path, layout: Layout) -> None:
        """Make both files, every row absent; a file system that knows holes gives them no room yet."""
        with path.open("xb") as file:
            file.write(layout.header())
            file.truncate(layout.file_bytes)
        with path.with_suffix(".crc32").open("xb") as file:
            file.truncate(4 * layout.rows)

    def open(self) -> None:
        """Map the files into memory."""
        header, count = self.layout.header(), self.layout.rows
        sums = self.path.with_suffix(".crc32")
        for path, expected in ((self.path, self.layout.file_bytes), (sums, 4 * count)):
            size = path.stat().st_size if path.is_file() and not path.is_symlink() else None
            if size != expected:
                raise ValueError(damaged(path, f"{size} bytes", f"{expected}"))
        with self.path.open("rb") as file:
            if file.read(len(header)) != header:
                raise ValueError(damaged(self.path, "another header", "that of its rows"))
        flat = torch.from_numpy(np.memmap(self.path, np.uint8, mode="c", offset=len(header)))
        rows, tokens = count * self.layout.row_bytes, 8 * count * self.layout.tokens
        self.rows = flat[:rows].view(self.layout.dtype).view(count, *self.layout.shape)
        self.tokens = flat[rows : rows + tokens].view(torch.int64).view(count, self.layout.tokens)
        self.ends = flat[rows + tokens :].view(torch.int64)
        self.sums = np.memmap(sums, "<u4", mode="r")
        self.verified = torch.zeros(count, dtype=torch.bool)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "layout": self.layout}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def complete(self, index: Tensor) -> Tensor:
        return torch.from_numpy(self.sums[index.numpy()] != 0)

    def read(self, index: Tensor, multiple: int) -> Hidden:
        for row in index[~self.verified[index]].unique().tolist():
            if checksum(self.rows[row], self.tokens[row], self.ends[row]) != self.sums[row]:
                raise ValueError(damaged(self.path, f"a row {row} that fails its CRC-32", "the row that was written"))
            self.verified[row] = True
        return super().read(index, multiple)

    def write(self, index: Tensor, hidden: Hidden, ends: Tensor) -> None:
        rows = stored(hidden.rows, self.layout.dtype)
        texts = None if hidden.tokens is None else hidden.tokens.cpu()
        begin, sums = len(self.layout.header()), {}
        after = begin + self.layout.rows * self.layout.row_bytes
        last = after + 8 * self.layout.rows * self.layout.tokens
        with self.path.open("rb+") as file:
            for place, row in enumerate(index.tolist()):
                tokens = torch.zeros(self.layout.tokens, dtype=torch.int64)
                if texts is not None:
                    tokens[: texts.shape[1]] = texts[place]
                whole = torch.zeros(self.layout.shape, dtype=self.layout.dtype)
                part = rows[place]
                (whole[: len(part)] if whole.dim() == 2 else whole).copy_(part)
                write_at(file, content(part), begin + row * self.layout.row_bytes)
                write_at(file, content(tokens), after + 8 * row * self.layout.tokens)
                write_at(file, content(ends[place].cpu()), last + 8 * row)
                sums[row] = checksum(whole, tokens, ends[place].cpu())
            os.fsync(file.fileno())
        with self.path.with_suffix(".crc32").open("rb+") as file:
            for row, value in sums.items():
                write_at(file, memoryview(value.to_bytes(4, "little")), 4 * row)
            os.fsync(file.fileno())


def write_at(file: Any, data: memoryview, place: int) -> None:
    """Write all of `data` at `place`; OSError that names the file where there is no room for all of it."""
    try:
        written = os.pwrite(file.fileno(), data, place)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file.name)) from error
    if written != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file.name))


def content(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on the CPU."""
    data: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(data)


def checksum(*tensors: Tensor) -> int:
    """CRC-32 of the bytes of some tensors, never 0."""
    value = 0
    for tensor in tensors:
        value = zlib.crc32(content(tensor), value)
    return value or 1


def stored(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows on the CPU in the dtype they are kept in; ValueError when a finite value becomes infinite there."""
    kept = rows.detach().to("cpu", dtype)
    if not torch.isfinite(kept).all() and torch.isfinite(rows).all():
        raise ValueError(f"dtype: got {dtype}, expected one that holds {float(rows.abs().max()):.3g}: use bfloat16")
    return kept


def damaged(path: Path, got: str, expected: str) -> str:
    """The message for a file that is not as it was written."""
    return f"{path}: got {got}, expected {expected}: the file is damaged; delete {path.parent}, it is made again"
