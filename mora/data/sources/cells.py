"""The inputs of one further modality in a data set's rows: files read one at a time, or what cells say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mora.data.modality import BrokenInputError, Modality
from mora.system.files import read_bytes, regular_file
from mora.system.messages import listed, printable

ABSENT, NO_FILE = -1, -2


@dataclass
class Cells:
    """One modality of every sample, in order.

    Attributes:
        modality: how it is read.
        keys: what the cells say, None where it is missing: paths, or the contents.
        folder: that relative paths are below.
        names: what messages call the samples.
        sizes: bytes of each file, or of a content; -1 where it is missing, -2 where its file is, or is none.
    """

    modality: Modality
    keys: list[str | None]
    folder: Path
    names: list[str]
    sizes: list[int]

    @classmethod
    def of(cls, modality: Modality, keys: list[str | None], folder: Path, names: list[str]) -> Cells:
        """With the sizes of the files; nothing is opened."""
        found = cls(modality, keys, folder, names, [])
        found.sizes = [found._size(row) for row in range(len(keys))]
        return found

    @property
    def present(self) -> Tensor:
        """Which samples have it, bool [N]."""
        return torch.tensor([size != ABSENT for size in self.sizes], dtype=torch.bool)

    def file(self, row: int) -> Path | None:
        """The file of a sample; None where there is none, or the cell is the content."""
        key = self.keys[row]
        return None if key is None or self.modality.written else self.folder / key

    def name(self, row: int) -> str:
        """What messages call one input: the sample, and the path."""
        key = self.keys[row]
        return self.names[row] if key is None or self.modality.written else f"{self.names[row]}: {printable(key)}"

    def read(self, row: int) -> Any:
        """The value of a sample, None where it is missing; BrokenInputError that names it."""
        key, file = self.keys[row], self.file(row)
        if key is None:
            return None
        if file is None:
            return self.modality.decode(key.encode(), self.name(row))
        try:
            data = read_bytes(file, self.modality.largest)
        except (OSError, ValueError) as error:
            raise BrokenInputError(f"{self.name(row)}: the file cannot be read: {reason_of(error)}") from error
        return self.modality.decode(data, self.name(row))

    def kept(self, index: Sequence[int]) -> Cells:
        """Those of some samples."""
        keys, names = [self.keys[row] for row in index], [self.names[row] for row in index]
        return Cells(self.modality, keys, self.folder, names, [self.sizes[row] for row in index])

    def refuse_absent(self, where: str) -> None:
        """ValueError that names the files that are not there, or cannot be read."""
        absent = [row for row, size in enumerate(self.sizes) if size == NO_FILE]
        refuse_absent(
            where,
            self.modality.name,
            self.modality.plural,
            len(self.keys),
            [(self.name(row), self.file(row)) for row in absent],
            self.modality.largest,
        )

    def defined(self) -> list[Any]:
        """What a data set's fingerprint holds of it."""
        return [self.modality.name, self.keys, self.sizes]

    def _size(self, row: int) -> int:
        key, file = self.keys[row], self.file(row)
        if key is None:
            return ABSENT
        return len(key.encode()) if file is None else file_size(file, self.modality.largest)


def file_size(file: Path, largest: int) -> int:
    """The bytes of an input's file, `NO_FILE` where there is none that can be read; nothing is opened."""
    try:
        return regular_file(file, largest).stat().st_size
    except (OSError, ValueError):  # too long a name, a folder that may not be entered, a pipe
        return NO_FILE


def refuse_absent(
    where: str, name: str, plural: str, rows: int, absent: Iterable[tuple[str, Path | None]], largest: int
) -> None:
    """ValueError for files, each with what messages call it, that do not exist or cannot be opened."""
    given = list(absent)
    reasons = [why_unreadable(file, largest) for _, file in given]
    told = [f"{each}{reason}" for (each, _), reason in zip(given, reasons, strict=True)]
    unreadable = [word for word, reason in zip(told, reasons, strict=True) if reason]
    for what, names in (("cannot be read", unreadable), ("do not exist", told)):
        if names:
            raise ValueError(
                f"{where}: {len(names):,} of {rows:,} {name} files {what}: {listed(names)}; "
                f"mend the paths, leave the cell empty where {an(name)} {name} is missing, or skip broken {plural}"
            )


def an(name: str) -> str:
    """The article of a name."""
    return "an" if name[0] in "aeiou" else "a"


def why_unreadable(file: Path | None, largest: int) -> str:
    """`": "` and the reason for which a file is not opened; nothing where there is none."""
    try:
        if file is not None:
            regular_file(file, largest)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        return f": {printable(str(error))}"
    return ""


def reason_of(error: Exception) -> str:
    """Why a file cannot be read, in words."""
    gone = "No such file or directory" if isinstance(error, FileNotFoundError) else None
    return gone or getattr(error, "strerror", None) or printable(str(error))
