"""How many groups of one model hold built values in a thread: when there are too many, the least recently used none."""

from __future__ import annotations

import threading
import weakref
from typing import Any, Protocol

MOST = 8


class Owner(Protocol):
    """What holds built values: a `Group`."""

    def drop(self) -> bool:
        """Let go of what this thread built; False where that is not to be done."""


class Shelf:
    """Shared by the groups of a model's adapters, each of which has buffers as large as its adapted weights.

    Args:
        most: how many groups hold values at once.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self._threads = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        return Shelf, (self.most,)  # a copy's groups hold nothing

    def use(self, group: Owner, most: int | None) -> None:
        """Note that a group's values are about to be used; `most` replaces the shelf's own where it is given."""
        here = self._threads.__dict__
        if (last := here.get("last")) is not None and last() is group:
            return
        here["last"] = weakref.ref(group)
        used: weakref.WeakKeyDictionary[Owner, None] = here.setdefault("used", weakref.WeakKeyDictionary())
        used.pop(group, None)
        used[group] = None
        for other in [*used][: max(0, len(used) - (most or self.most))]:
            if other.drop():
                used.pop(other, None)
