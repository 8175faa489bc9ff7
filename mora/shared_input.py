"""Adapted projections that read the same input: one read of it makes all their dropped copies."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mora.hooks import library_hook
from mora.switch import Switch
from mora_kernels import Group


class Projection(Protocol):
    """What is asked of an adapted projection: a `mora.MoraLinear`."""

    @property
    def training(self) -> bool: ...
    @property
    def dropout(self) -> float: ...
    @property
    def switch(self) -> Switch: ...
    @property
    def place(self) -> tuple[Group, int]: ...
    @property
    def bias(self) -> Tensor | None: ...


class Call:
    """One running forward call of an attention: its input, and the results that are waiting to be asked for."""

    def __init__(self) -> None:
        self.source: tuple[Any, ...] = (None,)
        self.waiting: dict[int, Tensor] = {}


class SharedInput:
    """The adapted ones of q, k, v of one attention, in training with dropout.

    The attention calls them one after another with the same tensor. The first call computes all of them, every
    projection with a mask of its own; the others find their result waiting. It waits no longer than the attention's own
    forward call lasts, in its thread: a projection that is called by itself is computed by itself.
    """

    def __init__(self, members: Sequence[Projection]) -> None:
        self.members = members
        self._threads = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {"members": self.members}

    def __setstate__(self, content: dict[str, Any]) -> None:
        self.__init__(**content)  # type: ignore[misc]

    @property
    def calls(self) -> list[Call]:
        """The forward calls of the attention that are running in this thread, the innermost last."""
        return self._threads.__dict__.setdefault("calls", [])

    @contextmanager
    def calling(self) -> Iterator[None]:
        """One forward call of the attention, or the part of it that makes q, k and v."""
        self.calls.append(Call())
        try:
            yield
        finally:
            self.calls.pop()  # and what nobody asked for

    def watch(self, attention: nn.Module) -> None:
        """See when an attention that is not this library's begins and ends a forward call."""
        attention.register_forward_pre_hook(self.begin)
        attention.register_forward_hook(self.end, always_call=True)

    def leave(self, attention: nn.Module) -> None:
        """No longer see it."""
        for hooks in (attention._forward_pre_hooks, attention._forward_hooks):
            for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is self]:
                del hooks[key]
                attention._forward_hooks_always_called.pop(key, None)

    @library_hook
    def begin(self, *_: Any) -> None:
        """Open a call."""
        if not torch.compiler.is_compiling():
            self.calls.append(Call())

    @library_hook
    def end(self, *_: Any) -> None:
        """Close it."""
        if not torch.compiler.is_compiling() and self.calls:
            self.calls.pop()

    def share(self, member: Projection) -> bool:
        """Whether others will ask for a result of the same input."""
        if torch.compiler.is_compiling() or not (member.training and member.dropout > 0 and member.switch.is_on):
            return False
        return bool(self.calls)

    def project(self, member: Projection, x: Tensor) -> Tensor:
        """Equation (2) of `member` for x [..., d]."""
        call, (group, index) = self.calls[-1], member.place
        version = None if x.is_inference() else x._version
        state = (version, torch.is_grad_enabled(), torch.is_autocast_enabled(x.device.type), member.dropout)
        if call.source[0] is not x or call.source[1:] != state or index not in call.waiting:
            alike = [one for one in self.members if one.training and one.dropout == member.dropout]
            indices = [one.place[1] for one in alike]
            results = group.linears(indices, x, [one.bias for one in alike], member.dropout, True)
            call.source, call.waiting = (x, *state), dict(zip(indices, results, strict=True))
        return call.waiting.pop(index)
