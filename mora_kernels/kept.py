"""Where computed values may be kept: nowhere by default; within `keeping`, by request, until the block ends.

No counter sees every change of a tensor (`.data`, NumPy, a fused optimizer, a replayed CUDA graph, another process),
and to look at the values takes the device's time and a wait for its answer. So what depends on weights is computed at
every use, and kept only where somebody says for how long. A block belongs to one context: other threads keep nothing.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch


class Scope:
    """One block in which values of `owners` are kept.

    Attributes:
        lasting: whether somebody asked for it; False for one call of a model, which has one set of weights.
        open: False once the block has ended, for contexts that were copied within it.
        generation: moves when everything is forgotten.
        most: how many groups of a model hold built values at once; None: as many as their shelf says.
    """

    def __init__(self, owners: Iterable[Any], lasting: bool, most: int | None = None) -> None:
        self.owners = {id(owner): owner for owner in owners}
        self.lasting, self.open, self.generation, self.most = lasting, True, 0, most
        self._values: dict[Any, tuple[Any, Any, Any]] = {}
        with _lock:
            _alive.add(self)

    def keep(self, name: Any, key: Any, make: Callable[[], Any], device: torch.device | None = None) -> Any:
        """The value of `name` that was made for `key`, or a new one; `device` is where it lies.

        A stream that did not make it waits, on the device, for the one that did.
        """
        stream = None
        if device is not None and device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
            stream = torch.cuda.current_stream(device)
        known = self._values.get(name)
        if known is not None and known[0] == key:
            if stream is not None and known[1] is not None and known[1] != stream:
                stream.wait_stream(known[1])
            return known[2]
        value = make()
        self._values[name] = (key, stream, value)
        return value

    def drop(self, owner: Any) -> None:
        """Drop what this thread keeps for one owner: under names that end with the thread and the owner."""
        for name in [*self._values]:
            if isinstance(name, tuple) and name[-1] is owner and threading.get_ident() in name:
                self._values.pop(name, None)

    def forget(self) -> None:
        """Drop everything."""
        self.generation += 1
        self._values = {}

    def end(self) -> None:
        """Keep nothing, and nobody alive, from now on."""
        self.open = False
        self.forget()
        self.owners = {}


_lock = threading.Lock()
_alive: weakref.WeakSet[Scope] = weakref.WeakSet()
_scopes: ContextVar[tuple[Scope, ...]] = ContextVar("mora_kernels.kept", default=())


@contextmanager
def keeping(owners: Iterable[Any], lasting: bool = True, most: int | None = None) -> Iterator[Scope]:
    """Keep values of `owners` within the block: nothing that was kept before is used, nothing is after."""
    scope = Scope(owners, lasting, most)
    _scopes.set((*_scopes.get(), scope))
    try:
        yield scope
    finally:
        scope.end()
        _scopes.set(tuple(other for other in _scopes.get() if other.open))  # blocks may end in any order


def scope_of(owner: Any) -> Scope | None:
    """The innermost open block of this context that keeps values of `owner`; None where nothing is kept."""
    scopes = _scopes.get()
    if not scopes:
        return None
    return next((scope for scope in reversed(scopes) if scope.open and id(owner) in scope.owners), None)


def drop(owner: Any) -> None:
    """Drop what this thread keeps for one owner in any block of this context."""
    for scope in _scopes.get():
        scope.drop(owner)


def forget(owners: Iterable[Any]) -> None:
    """Drop what any block, of any thread, keeps of these owners, and of others together with them."""
    ids = {id(owner) for owner in owners}
    with _lock:
        scopes = list(_alive)
    for scope in scopes:
        if ids & scope.owners.keys():
            scope.forget()
