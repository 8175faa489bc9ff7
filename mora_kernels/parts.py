"""Parts of a group, whose projections are whole at the same time (FSDP2 by block): each is built for itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from mora_kernels.projection import Projection


class Apart(Exception):  # noqa: N818 (nothing is wrong)
    """Some projections of a group are whole now and some are not."""


def is_sharded(projection: Projection) -> bool:
    """Whether the parameters of a projection are not whole now."""
    return getattr(projection, "sharded", False)


def check_together(projections: Sequence[Projection]) -> None:
    """Raise Apart unless all can be built now."""
    if any(map(is_sharded, projections)):
        raise Apart


class Parts:
    """Which projections of a group were whole together when one of them was first asked for.

    Args:
        projections: of the group.
        make: a group of some of them.

    Attributes:
        found: the part of a projection, and its number there, by its number in the group.
    """

    def __init__(self, projections: Sequence[Projection], make: Callable[[Sequence[Projection]], Any]) -> None:
        self.projections, self.make = projections, make
        self.found: dict[int, tuple[Any, int]] = {}

    def clear(self) -> None:
        """There are no parts; those there were hold nothing."""
        for part, _ in self.found.values():
            part.drop()
        self.found = {}

    def find(self, indices: Sequence[int]) -> None:
        """See to it that these projections have parts: those without, and what else is whole now, are one."""
        if all(index in self.found for index in indices):
            return
        every = [i for i, one in enumerate(self.projections) if i not in self.found and not is_sharded(one)]
        part = self.make([self.projections[i] for i in every])
        self.found |= {i: (part, at) for at, i in enumerate(every)}

    def linears(self, indices: Sequence[int], x: Tensor, biases: Sequence[Tensor | None], *rest: Any) -> list[Tensor]:
        """As `Group.linears`, by the parts that have these projections."""
        self.find(indices)
        parts = [self.found[index] for index in indices]
        if all(part is parts[0][0] for part, _ in parts):
            return parts[0][0].linears([at for _, at in parts], x, biases, *rest)
        return [part.linears([at], x, [bias], *rest)[0] for (part, at), bias in zip(parts, biases, strict=True)]
