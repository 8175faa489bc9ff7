"""Adapted projections that read the same input: one read of it makes all their dropped copies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mora.linear import MoraLinear


class Siblings:
    """The adapted ones of q, k, v of one attention, in training with dropout.

    Attention calls them one after another with the same tensor. The first call computes all of them, every projection
    with a mask of its own; the others find their result waiting. With another input nothing is waiting.
    """

    def __init__(self, members: list[MoraLinear]) -> None:
        self.members = members
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {"members": self.members, "_source": None, "_waiting": {}}

    def _forget(self) -> None:
        self._source: tuple[Any, ...] | None = None
        self._waiting: dict[int, Tensor] = {}

    def project(self, member: MoraLinear, x: Tensor) -> Tensor:
        """Equation (2) of `member` for x [..., d]."""
        _, index = member.place
        source = (x, x._version, torch.is_grad_enabled(), torch.is_autocast_enabled(x.device.type), member.dropout)
        known = self._source is not None and self._source[0] is x and self._source[1:] == source[1:]
        if known and index in self._waiting:
            result = self._waiting.pop(index)
            if not self._waiting:
                self._forget()
            return result
        alike = [one for one in self.members if one.enabled and one.training and one.dropout == member.dropout]
        group, _ = member.place
        indices = [one.place[1] for one in alike]
        results = group.linears(indices, x, [one.bias for one in alike], member.dropout, True)
        self._source, self._waiting = source, dict(zip(indices, results, strict=True))
        own = self._waiting.pop(index)
        if not self._waiting:
            self._forget()
        return own
