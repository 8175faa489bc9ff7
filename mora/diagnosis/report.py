"""A diagnosis as one object: figures, table, words, picture."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mora.diagnosis.figures import Figures
from mora.diagnosis.plot import draw
from mora.diagnosis.table import table
from mora.diagnosis.words import words
from mora.system.files import write_bytes


@dataclass(frozen=True)
class Diagnosis(Figures):
    """What `mora.diagnose` or `mora inspect` found; `str()` is the table and the words. `Figures` has its
    attributes.
    """

    def table(self) -> str:
        """The figures as text of at most 80 columns."""
        return table(self)

    def words(self) -> tuple[str, ...]:
        """What stands out and what to change, a sentence each; one sentence where nothing does."""
        return words(self)

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Write the picture, a PNG, and return its path; ImportError where matplotlib is absent."""
        write_bytes(Path(path), draw(self))
        return Path(path)

    def as_dict(self) -> dict[str, Any]:
        """Every figure and the words as JSON types; None for what is not known or not finite."""
        found = plain({**asdict(self), "words": self.words()})
        assert isinstance(found, dict)
        return found

    def __str__(self) -> str:
        return "\n\n".join(part for part in (self.table(), "\n".join(f"- {line}" for line in self.words())) if part)


def plain(value: Any) -> Any:
    """A value as JSON has it: tuples as lists, None in place of NaN and infinity."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
