"""What a modality is to data: how a cell or a file of a manifest becomes a value, what is checked, what is missing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mora.system.files import read_bytes

LARGEST = 1 << 28  # bytes of a file


class BrokenInputError(ValueError):
    """An input that cannot be read, or is none that a model takes; the message names it."""


class Modality(ABC):
    """How one modality is read; `mora.data.modalities.register` makes it known by its name.

        class Audio(Modality):
            name, plural = "audio", "recordings"

            def decode(self, data, where): ...   # bytes of a file -> a value; BrokenInputError(f"{where}: ...")
            def remark(self, value): ...         # "silent", or ""
            def probes(self): ...                # values on which two preprocessings would differ

        register(Audio())

    From then on manifests may have a column of that name, a cell of which is empty (null, NaN, blank) where a row lacks
    the modality, and else the path of a file, relative to the manifest's folder. A data set holds the `Modality`, which
    goes to worker processes with it: keep it picklable, and load heavy packages inside `decode`.

    A value is whatever `decode` returns: what a backbone's preprocessing takes, which makes of it one tensor of one
    shape for all rows (`mora.runs.backbone.Backbone.others`). What depends on a model, its sampling rate, its size, its
    mel frames, is there, not here.

    Attributes:
        name: of the column, of the tower and of the argument: a plain word.
        plural: what messages call several of them.
        written: the cell is the content itself, as a text is; no file is opened.
        largest: bytes that a file may have.
    """

    name: str
    plural: str
    written: bool = False
    largest: int = LARGEST

    @abstractmethod
    def decode(self, data: bytes, where: str) -> Any:
        """The value of a file's bytes, or of a cell's in UTF-8 where `written`.

        Raises BrokenInputError, whose message begins with `where` and says what is wrong and what was expected, for
        everything that is no such input: damaged, empty, too large, of a form that no model takes.
        """

    def read(self, given: Any) -> Any:
        """The value of what a user hands over: a path (the content, where `written`), bytes, or a value already.

        Raises BrokenInputError as `decode`; OSError and ValueError for a file that is not there or no regular one.
        """
        if isinstance(given, bytes):
            return self.decode(given, self.name)
        if self.written and isinstance(given, str):
            return self.decode(given.encode(), self.name)
        if not self.written and isinstance(given, (str, Path)):
            return self.decode(read_bytes(Path(given), self.largest), str(given))
        return given

    def remark(self, value: Any) -> str:
        """What stands out about a value that can be read, as one decoded wrong often does, in words; "" nothing."""
        return ""

    def probes(self) -> Sequence[Any]:
        """Values on which different preprocessings differ: they tell whether rows past the frozen blocks are stale.

        Without any, such rows are kept in memory only, for one run.
        """
        return ()
