"""Hooks that users registered on a module go on firing while another stands in its place, and come back with it.

What is cut out of a computation would pass them by: a block that is watched runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
