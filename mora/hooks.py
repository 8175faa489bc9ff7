"""Hooks that users registered on a module go on firing while another stands in its place, and come back with it."""

from __future__ import annotations

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
