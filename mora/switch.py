"""The one switch of a patched model: on, but for whoever stands within `mora.disabled`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

_off: ContextVar[tuple[int, ...]] = ContextVar("mora.switch", default=())


class Switch:
    """Shared by every adapted projection of one model.

    What `off` switches off belongs to its context: other threads compute as before, and whatever the order in which
    several blocks end, the model is on when the last has.
    """

    def __init__(self) -> None:
        self.blocks = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Switch, ()  # a copy is on

    @property
    def is_on(self) -> bool:
        """Whether the model computes as the adapted one here."""
        if not self.blocks:
            return True
        # A compiler cannot look into a context, and compiles anew when `blocks` changes.
        return not torch.compiler.is_compiling() and id(self) not in _off.get()

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within the block, and this context, the model computes as the pretrained one."""
        before = _off.get()
        with self._lock:
            self.blocks += 1
        _off.set((*before, id(self)))
        try:
            yield
        finally:
            _off.set(before)
            with self._lock:
                self.blocks -= 1
