"""What a classifier leaves out of its computation, and the form in which it takes rows that were computed before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Hidden:
    """Rows of one modality that have passed the frozen blocks already: what `MissingModalityClassifier` takes as well.

    Attributes:
        rows: [B, L, d], what enters the first block that is trained; [B, e], embeddings, where none is.
        tokens: int64 [B, L], the token ids of texts; None for images.
        filled: whether rows that are missing hold the substitute's already, as those of a `mora.PrefixCache` do.
    """

    rows: Tensor
    tokens: Tensor | None = None
    filled: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str) -> Hidden:
        """The same on another device."""
        return Hidden(self.rows.to(device), None if self.tokens is None else self.tokens.to(device), self.filled)


@dataclass(frozen=True)
class Savings:
    """Which work that cannot change a result is not done; each is exact, up to the rounding of another order of sums.

    Attributes:
        pooled: the last block of a tower runs for the row that becomes the embedding: k and v of every token, the rest
            of one. Dropout draws its masks for the rows that are left.
        missing: what stands for a missing image or text passes the frozen blocks once, and in eval the whole tower once
            per state of the model; only rows that are there are computed. In training it passes the adapted blocks for
            every row that lacks something, so that dropout stays per sample.
        lean: frozen feed-forward layers above the first trained block keep one tensor for the backward pass, not three.
        trimmed: texts end after the longest one of the batch, rounded up to a multiple of `multiple`.
        multiple: of the length of trimmed texts: fewer lengths, so fewer compilations.
    """

    pooled: bool = True
    missing: bool = True
    trimmed: bool = True
    lean: bool = True
    multiple: int = 8

    def __post_init__(self) -> None:
        for name in PARTS:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected True or False")
        if isinstance(self.multiple, bool) or not isinstance(self.multiple, int) or self.multiple < 1:
            raise ValueError(f"multiple: got {self.multiple!r}, expected a whole number of at least 1")

    @classmethod
    def none(cls) -> Savings:
        """Everything off: both towers run on every row, from end to end."""
        return cls(**dict.fromkeys(PARTS, False))

    @classmethod
    def parse(cls, given: str) -> Savings:
        """ "all", "none", or some of `PARTS` separated by commas; ValueError for another word."""
        if given in ("all", "none"):
            return cls() if given == "all" else cls.none()
        names = [name.strip() for name in given.split(",")]
        for name in names:
            if name not in PARTS:
                known = ", ".join(map(repr, PARTS))
                raise ValueError(f"savings: got {name!r}, expected 'all', 'none', or some of {known}")
        return cls(**{name: name in names for name in PARTS})

    def __str__(self) -> str:
        on = [name for name in PARTS if getattr(self, name)]
        return "all" if len(on) == len(PARTS) else listed(on) or "none"


PARTS = tuple(field.name for field in fields(Savings) if field.name != "multiple")


def listed(names: Iterable[str]) -> str:
    """Names separated by commas, as `Savings.parse` reads them."""
    return ",".join(names)


def chosen(given: Tensor | Hidden, present: Tensor) -> Tensor | Hidden:
    """The rows that are there."""
    if isinstance(given, Tensor):
        return given[present]
    return Hidden(given.rows[present], None if given.tokens is None else given.tokens[present], given.filled)


def padded(rows: Tensor, length: int) -> Tensor:
    """Rows of tokens [B, L, ...] cut or filled with zeros to another length: nothing looks behind the end."""
    if rows.shape[1] >= length:
        return rows[:, :length]
    return torch.cat([rows, rows.new_zeros(len(rows), length - rows.shape[1], *rows.shape[2:])], dim=1)
