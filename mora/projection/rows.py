"""A batch whose rows belong to several adapters: one product for the rows of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Rows:
    """Which adapter each row of a batch belongs to.

    Args:
        names: one for each row.

    Attributes:
        names: every adapter once, in the order in which they come.
        parts: the rows of each, in that order.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.count, self.names = len(names), list(dict.fromkeys(names))
        self.parts = [[row for row, own in enumerate(names) if own == name] for name in self.names]
        self.each = tuple(names)
        self._indices: dict[torch.device, tuple[list[Tensor], Tensor]] = {}

    def label(self) -> str:
        """All names, row by row."""
        return ", ".join(self.each)

    def indices(self, device: torch.device) -> tuple[list[Tensor], Tensor]:
        """(rows of each adapter, the way back from all of them one after another), int64, on a device."""
        if device not in self._indices:
            parts = [torch.tensor(part, device=device) for part in self.parts]
            self._indices[device] = parts, torch.cat(parts).argsort()
        return self._indices[device]


class Mixed:
    """What computes at one site: for the rows of each adapter its own projection, or the frozen one.

    Args:
        rows: of the batch.
        seats: the adapted projection of each of `rows.names`, or None; not all of them.
    """

    def __init__(self, rows: Rows, seats: Sequence[Any]) -> None:
        self.rows, self.seats = rows, seats
        self.one = next(seat for seat in seats if seat is not None)

    def together(self, x: Tensor) -> Tensor:
        """Return [B, ..., out] for x [B, ..., in]; ValueError unless B is the number of names."""
        return self.product(x)

    def product(self, x: Tensor) -> Tensor:
        """The same: the others of q, k, v read other rows."""
        if x.dim() < 2 or len(x) != self.rows.count:
            raise ValueError(
                f"name: got one for each of {self.rows.count} rows, a projection was given an input of shape "
                f"{tuple(x.shape)}, expected {self.rows.count} rows first: all rows go through the model together "
                "(no missing ones), in the order of the names"
            )
        if len(self.seats) == 1:
            return self.one.product(x)
        parts, back = self.rows.indices(x.device)
        found = [self.of(seat, x.index_select(0, rows)) for seat, rows in zip(self.seats, parts, strict=True)]
        return torch.cat(found).index_select(0, back)

    def of(self, seat: Any, x: Tensor) -> Tensor:
        """The product of one adapter's rows."""
        return self.one.stand.frozen(x) if seat is None else seat.product(x)
