"""Files that are never half-written, and readers that never run code."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

PICKLE_STARTS = (b"PK\x03\x04", b"\x80")


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to: flushed to disk and renamed at the end, removed after an error.

    When the block removes the file itself, `path` stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        yield temporary
        if temporary.exists():
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` beside `path`, flush it to disk, and let it appear by rename."""
    with appearing(path) as temporary, temporary.open("xb") as file:  # plain creation, so that the user's umask holds
        file.write(data)


def pack_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file; every tensor contiguous on the CPU."""
    return save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, dict(metadata))


def digest(data: bytes) -> str:
    """SHA-256 of `data`, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a safetensors file and its SHA-256; ValueError for a pickle or a damaged file."""
    data = path.read_bytes()
    try:
        return load(data), digest(data)
    except SafetensorError as error:
        # Asked only now: a safetensors header of 128 + 256 n bytes starts with the same byte as a pickle.
        if data.startswith(PICKLE_STARTS):
            raise ValueError(
                f"{path}: got a pickle, expected safetensors: files that can run code are not read"
            ) from error
        raise ValueError(f"{path}: got a damaged safetensors file ({error}), expected a whole one") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file; ValueError when it is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: got a file that is not JSON ({error}), expected a JSON object") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: got a JSON {type(content).__name__}, expected an object")
    return content
