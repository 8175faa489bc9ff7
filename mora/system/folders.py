"""Folders that appear as a whole, and what a kill left of one that was about to."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mora.system.files import appearing

# What `appearing` and `whole_folder` make beside the final name.
LEFTOVER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}(?P<old>\.old)?")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A work folder beside `folder` that takes its place at the end of the block, or vanishes after an error."""
    work = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}")
    work.mkdir(parents=True)
    try:
        yield work
        for path in work.rglob("*"):  # files that other libraries wrote
            if path.is_file() and not path.is_symlink():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    old = work.with_name(f"{work.name}.old")
    if os.path.lexists(folder):
        os.replace(folder, old)
    try:
        os.replace(work, folder)
    except OSError:
        if os.path.lexists(old):
            os.replace(old, folder)
        raise
    remove(old)


def write_together(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write several files of one folder: all of them are on disk before the first one appears.

    The last one is removed first and appears last: where it is, all are of one call.
    """
    *_, last = contents
    with ExitStack() as stack:
        waiting = {name: stack.enter_context(appearing(folder / name)) for name in reversed(list(contents))}
        for name, content in contents.items():
            try:
                with waiting[name].open("xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:  # a full disk does not say which file
                raise OSError(error.errno, error.strerror, str(folder / name)) from error
        (folder / last).unlink(missing_ok=True)


def remove_leftovers(place: Path, name: str | None = None) -> None:
    """Remove what a kill left in a folder of files and folders (called `name`) that were about to appear.

    A folder that was moved away for a new one that never came goes back to its place. Only for whoever holds the lock.
    """
    for left in place.glob(".*"):
        found = LEFTOVER.fullmatch(left.name)
        if found is None or name not in (None, found["name"]):
            continue
        if found["old"] and not os.path.lexists(home := place / found["name"]):
            os.replace(left, home)
        else:
            remove(left)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, as far as that can be done."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
