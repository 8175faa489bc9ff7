"""Files that are never half-written, and readers that never run code, wait for nobody and take no more than a bound.

Every path that a user, a table or another file names is read through `read_bytes` (or what stands on it): a regular
file of at most `most` bytes, looked at before it is opened. A pipe would hang for ever, a device has no end.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickle
import re
import secrets
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from mora.system.messages import printable
from mora.system.pickles import PICKLE_START, ZIP_START, refuse_tangled

PICKLE_STARTS = (ZIP_START, PICKLE_START)
# Bytes that a file of each kind may have; a picture's bound is `mora.data.images`'s own.
LARGEST, LARGEST_TEXT, LARGEST_JSON = 1 << 36, 1 << 32, 1 << 26
LARGEST_HEADER = 1 << 24  # of a safetensors file: names, dtypes and shapes of some 100,000 tensors
DEEPEST = 64  # levels of JSON
MARKS = re.compile(r"\\.|[\[\]{}\"]")  # an escape, or what opens and closes


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to: flushed to disk and renamed at the end, removed after an error.

    When the block removes the file itself, `path` stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        yield temporary
        if temporary.exists():
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk does not say which file
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` beside `path`, flush it to disk, and let it appear by rename."""
    with appearing(path) as temporary, temporary.open("xb") as file:  # plain creation, so that the user's umask holds
        file.write(data)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as readable JSON; it appears by rename."""
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def pack_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file; every tensor contiguous on the CPU."""
    return save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, dict(metadata))


def digest(data: bytes) -> str:
    """SHA-256 of `data`, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def regular_file(path: Path, most: int = LARGEST) -> Path:
    """Return `path` if it is, or a link leads to, a regular file of at most `most` bytes; nothing is opened.

    Raises FileNotFoundError where nothing is, ValueError for a folder, pipe, socket, device or a larger file, and for
    a path that no file system takes.
    """
    try:
        found = path.stat()
    except ValueError as error:  # a NUL, or a lone surrogate
        raise ValueError(f"path: got {str(path)!r}, which cannot be a path ({error}), expected a file") from error
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"path: got {path}, which does not exist, expected a file") from None
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"path: got {path}, which is {kind_of(found.st_mode)}, expected a regular file")
    if found.st_size > most:
        raise ValueError(f"path: got {path} of {found.st_size:,} bytes, expected at most {most:,}")
    return path


def kind_of(mode: int) -> str:
    """What stands at a path, in words."""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def read_bytes(path: Path, most: int = LARGEST) -> bytes:
    """The content of a regular file of at most `most` bytes; errors as `regular_file`."""
    regular_file(path, most)
    # Not to wait even if it became a pipe meanwhile, and not to read past the bound if it grew.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"path: got {path}, which is no longer a regular file, expected one")
        try:
            data = file.read(min(found.st_size, most) + 1)
        except MemoryError:
            raise ValueError(
                f"path: got {path} of {found.st_size:,} bytes, expected a file that memory holds"
            ) from None
    if len(data) > min(found.st_size, most):
        raise ValueError(f"path: got {path}, which grows while it is read, expected a whole file")
    return data


def read_text(path: Path, most: int = LARGEST_TEXT) -> str:
    """The UTF-8 text of a file (with or without byte order mark); ValueError names the line that is not UTF-8."""
    data = read_bytes(path, most)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}: line {line} is not UTF-8 ({encoding_hint(data)}), expected UTF-8 text") from error


def encoding_hint(data: bytes) -> str:
    """What a file that is not UTF-8 looks like."""
    known = {b"\xff\xfe": "it looks like UTF-16", b"\xfe\xff": "it looks like UTF-16", b"\x1f\x8b": "it is gzip",
             b"PK": "it is a zip archive"}  # fmt: skip
    return next((words for start, words in known.items() if data.startswith(start)), "another encoding")


def parse_json(text: str, where: str, finite: bool = False) -> Any:
    """The value of a JSON text, nested at most `DEEPEST` levels, no name twice; ValueError that begins with `where`.

    `finite` refuses NaN and infinity too, which Python reads though JSON has neither, and numbers like 1e999.
    """
    if text.count("[") + text.count("{") > DEEPEST and (deepest := depth_of(text)) > DEEPEST:
        raise ValueError(f"{where}: got JSON nested {deepest:,} deep, expected at most {DEEPEST}")

    def number(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise NotFiniteNumberError(f"{where}: got the number {digits[:40]}, expected finite ones")
        return value

    numbers: dict[str, Any] = {"parse_float": number, "parse_constant": number} if finite else {}
    try:
        return json.loads(text, object_pairs_hook=once, **numbers)
    except NotFiniteNumberError as error:
        raise ValueError(str(error)) from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: got text that is not JSON ({error}), expected JSON") from error
    except KeyError as error:
        raise ValueError(f"{where}: got {error.args[0]!r} twice in one object, expected each name once") from error
    except ValueError as error:  # Python's limit on the digits of a number
        raise ValueError(f"{where}: got a number of too many digits ({error}), expected JSON") from error


def depth_of(text: str) -> int:
    """How deep a JSON text is nested."""
    depth = deepest = 0
    inside = False
    for piece in MARKS.finditer(text):
        mark = piece[0]
        if mark == '"':
            inside = not inside
        elif not inside and len(mark) == 1:
            depth += 1 if mark in "[{" else -1
            deepest = max(deepest, depth)
    return deepest


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of some names and values; KeyError for a name that comes twice, of which one would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise KeyError(next(name for name, count in counts.items() if count > 1))
    return found


class NotFiniteNumberError(ValueError):
    """A number that is NaN or infinite where JSON has to be finite."""


def read_json(path: Path, most: int = LARGEST_JSON) -> dict[str, Any]:
    """Return the JSON object of a file of at most `most` bytes, all numbers finite; ValueError when it is not one."""
    content = parse_json(read_text(path, most), str(path), finite=True)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: got a JSON {type(content).__name__}, expected an object")
    return content


def read_tensors(path: Path, most: int = LARGEST) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a safetensors file and its SHA-256; ValueError for a pickle or a damaged file."""
    data = read_bytes(path, most)
    header = int.from_bytes(data[:8], "little")
    # A header of 128 + 256 n bytes starts with the byte a pickle starts with; a pickle's would be longer than the file.
    if header > len(data) - 8 and data.startswith(PICKLE_STARTS):
        raise ValueError(f"{path}: got a pickle, expected safetensors: files that can run code are not read")
    if LARGEST_HEADER < header <= len(data) - 8:
        raise ValueError(f"{path}: got a header of {header:,} bytes, expected at most {LARGEST_HEADER:,}")
    try:
        return load(data), digest(data)
    except Exception as error:  # SafetensorError, and what its torch half raises for a dtype torch lacks
        raise ValueError(f"{path}: got a damaged safetensors file ({reason(error)}), expected a whole one") from error


def read_pickled(path: Path, most: int = LARGEST) -> Any:
    """Return the content of a file of `torch.save`, tensors on the CPU; `weights_only=True`, so that no code runs.

    Raises ValueError for what that refuses, a truncated file, values nested into each other (`refuse_tangled`), and an
    archive whose entries are more than they take on disk: `torch.save` compresses nothing. The tensors are not looked
    at: see `why_not_plain`.
    """
    data = read_bytes(path, most)
    try:
        if data.startswith(ZIP_START):
            refuse_packed(data)
        refuse_tangled(data)
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a crafted file can make the unpickler raise anything
        raise ValueError(
            f"{path}: got a file that torch.load(weights_only=True) refuses ({reason(error)}), expected torch.save's"
        ) from error


def refuse_packed(data: bytes) -> None:
    """Raise ValueError for a zip archive that unpacks to more than it is."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
    size = sum(entry.file_size for entry in entries)
    if size > len(data) or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError(f"a compressed archive ({len(data):,} bytes unpack to {size:,}), which torch.save never makes")


def why_not_plain(value: object) -> str:
    """What keeps `value` from being a plain tensor, every element stored and on a device; "" when nothing does."""
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}, expected a tensor"
    if type(value) not in (Tensor, torch.nn.Parameter):
        return f"is a {type(value).__name__}, expected a plain tensor"
    if value.layout is not torch.strided or value.is_nested:
        return f"is {str(value.layout).removeprefix('torch.')} or nested, expected a dense tensor"
    if value.is_quantized:
        return f"is quantised ({value.dtype}), expected plain numbers"
    if value.is_meta:
        return "is on the meta device and has no elements, expected values"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"has shape {tuple(value.shape)} over {value.untyped_storage().nbytes():,} bytes, expected all stored"
    return ""


def reason(error: Exception) -> str:
    """The first line of an error's message, short and safe to print, or its kind where it has none.

    What torch says of a pickle ends with how to run its code: our words instead.
    """
    if isinstance(error, pickle.UnpicklingError):
        return "it holds what is no plain tensor; files that can run code are not read"
    lines = str(error).splitlines()
    return printable(lines[0])[:200] if lines else type(error).__name__
