"""Where computed values may be kept: nowhere by default; within `keeping`, by request, until the block ends.

No counter sees every change of a tensor (`.data`, NumPy, a fused optimizer, a replayed CUDA graph, another process),
and to look at the values takes the device's time and a wait for its answer. So what depends on weights is computed at
every use, and kept only where somebody says for how long. A block belongs to one context: other threads keep nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any


class Scope:
    """One block in which values of `owners` are kept.

    Attributes:
        lasting: whether somebody asked for it; False for one call of a model, which has one set of weights.
        values: what is kept, by whatever key its owner likes.
    """

    def __init__(self, owners: Iterable[Any], lasting: bool) -> None:
        self.owners = {id(owner): owner for owner in owners}
        self.lasting = lasting
        self.values: dict[Any, Any] = {}
        alive.add(self)


alive: weakref.WeakSet[Scope] = weakref.WeakSet()
_scopes: ContextVar[tuple[Scope, ...]] = ContextVar("mora_kernels.kept", default=())


@contextmanager
def keeping(owners: Iterable[Any], lasting: bool = True) -> Iterator[Scope]:
    """Keep values of `owners` within the block: nothing that was kept before is used, nothing is after."""
    scope = Scope(owners, lasting)
    before = _scopes.get()
    _scopes.set((*before, scope))
    try:
        yield scope
    finally:
        _scopes.set(before)
        scope.values.clear()


def scope_of(owner: Any) -> Scope | None:
    """The innermost open block of this context that keeps values of `owner`; None where nothing is kept."""
    scopes = _scopes.get()
    if not scopes:
        return None
    return next((scope for scope in reversed(scopes) if id(owner) in scope.owners), None)


def forget(owners: Iterable[Any]) -> None:
    """Drop what any block, of any thread, keeps of these owners or together with them."""
    ids = {id(owner) for owner in owners}
    for scope in list(alive):
        if ids & scope.owners.keys():
            scope.values.clear()
