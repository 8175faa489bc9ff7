"""Adapted projections that read the same input: one read of it makes all their dropped copies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mora.projection.switch import Switch
from mora.system.hooks import Calls
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


class SharedInput(Calls):
    """The adapted ones of q, k, v of one attention, in training with dropout.

    The attention calls them one after another with the same tensor. The first call computes all of them, every
    projection with a mask of its own; the others find their result waiting. It waits no longer than the attention's own
    forward call lasts, in its thread: a projection that is called by itself is computed by itself.
    """

    def __init__(self, members: Sequence[Projection]) -> None:
        super().__init__()
        self.members = members
        self.leader: SharedInput | None = None  # of another adapter, whose hooks the attention has already

    @property
    def calls(self) -> list[Any]:
        """The running calls of the attention, whichever adapter sees them."""
        return super().calls if self.leader is None else self.leader.calls

    def watch(self, module: nn.Module, first: bool = False) -> None:
        """See when a call of the attention begins and ends; once for all adapters."""
        seen = (getattr(hook, "__self__", None) for hook in module._forward_pre_hooks.values())
        self.leader = next((one for one in seen if isinstance(one, SharedInput)), None)
        if self.leader is None:
            super().watch(module, first)

    def open(self, module: nn.Module) -> Call:
        """A call that has seen no input yet."""
        return Call()

    @contextmanager
    def calling(self) -> Iterator[None]:
        """One forward call of the attention, or the part of it that makes q, k and v."""
        self.calls.append(Call())
        try:
            yield
        finally:
            self.calls.pop()  # and what nobody asked for

    def share(self, member: Projection) -> bool:
        """Whether others will ask for a result of the same input."""
        if torch.compiler.is_compiling() or not (member.training and member.dropout > 0 and member.switch.is_on):
            return False
        return bool(self.calls)

    def project(self, member: Projection, x: Tensor) -> Tensor:
        """Equation (2) of `member` for x [..., d]."""
        call, (group, index) = self.calls[-1], member.place
        version = None if x.is_inference() else x._version
        state = (group, version, torch.is_grad_enabled(), torch.is_autocast_enabled(x.device.type), member.dropout)
        if call.source[0] is not x or call.source[1:] != state or index not in call.waiting:
            alike = [one for one in self.members if one.training and one.dropout == member.dropout]
            indices = [one.place[1] for one in alike]
            results = group.linears(indices, x, [one.bias for one in alike], member.dropout, True)
            call.source, call.waiting = (x, *state), dict(zip(indices, results, strict=True))
        return call.waiting.pop(index)
