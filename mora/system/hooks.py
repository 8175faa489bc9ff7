"""Hooks that users registered on a module go on firing while another stands in its place, and come back with it.

What is cut out of a computation would pass them by: a block that is watched runs as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

# Of `nn.Module`: what `register_*_hook` writes to. The dictionaries are shared, not copied, so that handles, and hooks
# registered on either module while both are there, mean both.
TABLES = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def share_hooks(module: nn.Module, source: nn.Module) -> None:
    """Let the hooks of `source` be those of `module`."""
    module.__dict__.update({name: source.__dict__[name] for name in TABLES if name in source.__dict__})


CALLED = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
OURS = "_mora_own_hook"


def library_hook(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a hook as this library's own: nobody else waits for it."""
    setattr(hook, OURS, True)
    return hook


def watched(module: nn.Module) -> bool:
    """Whether somebody registered a hook on a module or on anything in it."""
    return any(watched_itself(part) for part in module.modules())


def watched_itself(module: nn.Module) -> bool:
    """Whether somebody registered a hook on a module, whatever is in it."""
    tables = (module.__dict__[name] for name in CALLED)
    return any(not getattr(hook, OURS, False) for table in tables if table for hook in list(table.values()))


class Calls:
    """The forward calls of a module that are running, each with what `open` gives for it; every thread has its own.

    Copies and pickles carry no running call. What is being compiled is left alone.
    """

    def __init__(self) -> None:
        self._threads = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_threads"}

    def __setstate__(self, content: dict[str, Any]) -> None:
        self.__dict__.update(content)
        self._threads = threading.local()

    @property
    def calls(self) -> list[Any]:
        """What the calls that run in this thread were given, the innermost last."""
        return self._threads.__dict__.setdefault("calls", [])

    def open(self, module: nn.Module) -> Any:
        """What lasts as long as a call that begins."""
        raise NotImplementedError

    def close(self, call: Any) -> None:
        """End what `open` gave."""

    def watch(self, module: nn.Module, first: bool = False) -> None:
        """See when a forward call of `module` begins and ends; `first`: begin before all hooks that are there."""
        module.register_forward_pre_hook(self.begin, prepend=first)
        module.register_forward_hook(self.end, always_call=True)

    def leave(self, module: nn.Module) -> None:
        """No longer see it."""
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is self]:
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
                module._forward_hooks_always_called.pop(key, None)

    @library_hook
    def begin(self, module: nn.Module, *_: Any) -> None:
        """A call begins."""
        if not torch.compiler.is_compiling():
            self.calls.append(self.open(module))

    @library_hook
    def end(self, *_: Any) -> None:
        """The innermost call is over, or failed."""
        if not torch.compiler.is_compiling() and self.calls:
            self.close(self.calls.pop())
