"""One entry of a folder of stored rows: files that appear together, under a name made of all they depend on."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mora.savings.fingerprint import key
from mora.savings.store import FileStore, Layout, damaged
from mora.system.files import read_json, write_bytes

try:
    import fcntl
except ImportError:  # no POSIX: two processes may compute the same rows then, which costs time and no more
    fcntl = None  # type: ignore[assignment]

ABOUT, CLAIMS, LENGTH = "about.json", "claims", 32


class Claims:
    """Which chunks are being filled, by locks on the bytes of one file: those of a killed process are gone with it."""

    def __init__(self, path: Path) -> None:
        self.path, self.process = path, os.getpid()
        self.file = path.open("rb+", buffering=0)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def take(self, chunk: int) -> bool:
        """Claim a chunk; False when another process has it."""
        if fcntl is None:
            return True
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, chunk)
        except OSError:
            return False
        return True

    def release(self, chunk: int) -> None:
        """Give a chunk back."""
        if fcntl is not None:
            fcntl.lockf(self.file, fcntl.LOCK_UN, 1, chunk)


def open_entry(
    folder: Path, parts: Mapping[str, Any], layouts: Mapping[str, Layout]
) -> tuple[Path, dict[str, FileStore], bool]:
    """(its folder, a store per modality, whether it is new) of what `parts` describes; made where it is not there.

    Raises ValueError for damaged files, OSError where nothing can be written.
    """
    path = folder / key(parts)[:LENGTH]
    if path.is_symlink():
        raise ValueError(f"cache: got a link at {path}, expected a folder of rows: they are written there")
    new = not path.is_dir()
    if new:
        create(path, parts, layouts)
    about = path / ABOUT
    if not about.is_file() or read_json(about).get("parts") != json.loads(json.dumps(parts)):
        raise ValueError(damaged(about, "another description", "that of its name"))
    return path, {name: FileStore(path / f"{name}.safetensors", layout) for name, layout in layouts.items()}, new


def create(path: Path, parts: Mapping[str, Any], layouts: Mapping[str, Layout]) -> None:
    """Make an entry without rows; it appears by rename, and another process's that came first stays."""
    work = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    work.mkdir(parents=True)
    try:
        for name, layout in layouts.items():
            FileStore.create(work / f"{name}.safetensors", layout)
        (work / CLAIMS).touch()
        write_bytes(work / ABOUT, (json.dumps({"parts": parts}, indent=2) + "\n").encode())
        os.rename(work, path)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
