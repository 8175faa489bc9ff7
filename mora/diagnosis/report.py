"""A diagnosis as one object: figures, table, words, picture."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mora.diagnosis.figures import Drift, Gram, Head, History, Pairing, Projection, ZeroShot


@dataclass(frozen=True)
class Behaviour:
    """What the adapted model makes of a batch, beside the pretrained one; of a head without a batch, its norms."""

    drifts: tuple[Drift, ...] = ()
    pairings: tuple[Pairing, ...] = ()
    zero_shot: ZeroShot | None = None
    heads: tuple[Head, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """What `mora.diagnose` or `mora inspect` found; `str()` is the table and the words.

    Attributes:
        method: one of `mora.runs.methods.METHODS`.
        identity: whether MoRA's adapters started as the pretrained model.
        projections: what became of each adapted weight; empty for methods without any.
        grams: of each adapted block, where the method has them.
        behaviour: embeddings, pairs, zero-shot accuracy and head.
        history: how the run went; None without a run.
        unseen: why no rows were looked at, where they should have been.
    """

    method: str
    identity: bool
    projections: tuple[Projection, ...]
    grams: tuple[Gram, ...]
    behaviour: Behaviour
    history: History | None = None
    unseen: str | None = None

    def table(self) -> str:
        """The figures as text of at most 80 columns."""
        from mora.diagnosis.table import table

        return table(self)

    def words(self) -> tuple[str, ...]:
        """What stands out and what to change, a sentence each; one sentence where nothing does."""
        from mora.diagnosis.words import words

        return words(self)

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Write the picture, a PNG, and return its path; ImportError where matplotlib is absent."""
        from mora.diagnosis.plot import draw
        from mora.system.files import write_bytes

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
