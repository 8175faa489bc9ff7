"""Which of a model's named adapters computes: the one that is set, but for whoever stands within `mora.using`."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from mora.projection.rows import Mixed, Rows

_using: ContextVar[tuple[object, ...]] = ContextVar("mora.choice", default=())


class Choice:
    """Shared by every site of one model; made when a second adapter comes.

    A site is a place where a projection is adapted by some adapter, and has a number. What `using` chooses belongs to
    its context, as what `mora.disabled` switches off does: other threads compute as before.

    Args:
        name: of the adapter that is set.

    Attributes:
        seats: what computes at each site for the adapter that is set, by number; None: the frozen projection.
        every: the same for every adapter, by name.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.seats: list[Any] = []
        self.every = {name: self.seats}
        self.blocks = 0
        self._lock = threading.Lock()
        self._tokens: dict[int, str | Rows] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "every": self.every}  # a copy is within no block

    def __setstate__(self, content: dict[str, Any]) -> None:
        self.__init__(content["name"])  # type: ignore[misc]
        self.every = content["every"]
        self.seats = self.every[self.name]

    def add_site(self) -> int:
        """The number of a new site, at which nothing computes yet."""
        for seats in self.every.values():
            seats.append(None)
        return len(self.seats) - 1

    def add(self, name: str) -> list[Any]:
        """The seats of a new adapter, all of them empty."""
        self.every[name] = [None] * len(self.seats)
        return self.every[name]

    def choose(self, name: str) -> None:
        """Let an adapter be the one that computes, in every context that chose no other: one pointer."""
        self.name, self.seats = name, self.every[name]

    def at(self, number: int) -> Any:
        """What computes at a site here; None: the frozen projection."""
        return self.seats[number] if not self.blocks else self.at_here(number)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def at_here(self, number: int) -> Any:
        """As `at` while a block is open somewhere; no compiler can look into a context."""
        chosen = self.chosen()
        if isinstance(chosen, str):
            return self.every[chosen][number]
        seats = [self.every[name][number] for name in chosen.names]
        return None if all(seat is None for seat in seats) else Mixed(chosen, seats)

    def here(self) -> str:
        """The name of the adapter that computes here; ValueError where rows have several."""
        chosen = self.chosen()
        if isinstance(chosen, str):
            return chosen
        if len(chosen.names) > 1:
            raise ValueError(f"name: got None where several adapters are active, expected one of {chosen.label()}")
        return chosen.names[0]

    def label(self) -> str:
        """What computes here, in words that differ where what computes does."""
        chosen = self.chosen()
        return chosen if isinstance(chosen, str) else chosen.label()

    def chosen(self) -> str | Rows:
        """The adapter that computes here, or those of the rows of a batch.

        Raises RuntimeError in a thread of autograd's own, which has no context, where blocks chose another adapter than
        the one that is set: what is computed again there (activation checkpointing) could be anybody's.
        """
        if not self.blocks:
            return self.name
        for token in reversed(_using.get()):
            if (chosen := self._tokens.get(id(token))) is not None:
                return chosen
        alone = isinstance(threading.current_thread(), threading._DummyThread)
        if alone and torch._C._current_graph_task_id() != -1 and self.used() != {self.name}:
            raise RuntimeError(
                "using: got a backward pass that computes a block of the model again (activation checkpointing) on a "
                "device's own thread while mora.using is open, expected mora.set_adapter for such training"
            )
        return self.name

    @contextmanager
    def using(self, names: str | Sequence[str]) -> Iterator[None]:
        """Within the block, and this context, another adapter computes, or one for each row of a batch."""
        token = object()
        with self._lock:
            self._tokens[id(token)] = names if isinstance(names, str) else Rows(names)
            self.blocks += 1
        _using.set((*_using.get(), token))
        try:
            yield
        finally:
            _using.set(tuple(other for other in _using.get() if other is not token))
            with self._lock:
                self.blocks -= 1
                del self._tokens[id(token)]

    def used(self) -> set[str]:
        """The adapters that somebody computes with now: the one that is set, and those of open blocks."""
        with self._lock:
            chosen = [*self._tokens.values()]
        return {self.name}.union(*([one] if isinstance(one, str) else one.names for one in chosen))
