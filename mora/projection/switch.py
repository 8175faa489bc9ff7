"""The one switch of a patched model: on, but for whoever stands within `mora.disabled`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

_off: ContextVar[tuple[object, ...]] = ContextVar("mora.switch", default=())


class Switch:
    """Shared by every adapted projection of one model.

    What `off` switches off belongs to its context: other threads compute as before, and whatever the order in which
    several blocks end, the model is on when the last has. What activation checkpointing computes again in a backward
    pass has no context: there the model is off while any block is open.
    """

    def __init__(self) -> None:
        self.blocks = 0
        self._lock = threading.Lock()
        self._tokens: set[int] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return Switch, ()  # a copy is on

    @property
    def is_on(self) -> bool:
        """Whether the model computes as the adapted one here."""
        return not self.blocks or self.is_on_here()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def is_on_here(self) -> bool:
        """The same while a block is open somewhere; no compiler can look into a context."""
        if torch._C._current_graph_task_id() != -1:
            return False
        return not any(id(token) in self._tokens for token in _off.get())

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within the block, and this context, the model computes as the pretrained one."""
        token = object()
        with self._lock:
            self.blocks += 1
            self._tokens.add(id(token))
        _off.set((*_off.get(), token))
        try:
            yield
        finally:
            _off.set(tuple(other for other in _off.get() if other is not token))
            with self._lock:
                self.blocks -= 1
                self._tokens.discard(id(token))
