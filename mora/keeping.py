"""What is kept of a model: nothing between two calls, but where somebody asks for it (`keeping`, `forget`)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from mora.hooks import library_hook
from mora.linear import MoraLinear
from mora_kernels import Group, kept


@contextmanager
def keeping(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block W_eff, casts and what stands for missing inputs are computed once, not at every call.

        with torch.inference_mode(), mora.keeping(model):
            for batch in loader: model(*batch)

    Changes that autograd counts (optimizers, `load_state_dict`, in-place operators) are noticed within it. One that no
    counter sees (`.data`, an average that is swapped in, another process) is not: make it outside the block, or call
    `mora.forget(model)` after it. The block is this thread's own. Outside, nothing is ever kept, so nothing is stale.

    Args:
        model: a patched CLIP, a `MissingModalityClassifier`, or anything that holds one.
    """
    check(model)
    with kept.keeping(owners_of(model)):
        yield model


def forget(model: nn.Module) -> None:
    """Drop every value that is kept of `model` (W_eff, casts, what stands for missing inputs), in every thread.

    Args:
        model: a patched CLIP, a `MissingModalityClassifier`, or anything that holds one.
    """
    check(model)
    owners = owners_of(model)
    kept.forget(owners)
    for owner in owners:
        if isinstance(owner, Group):
            owner.invalidate()


def owners_of(model: nn.Module) -> list[Any]:
    """Everything in a model that may keep something: its modules, and the groups of its projections."""
    modules = list(model.modules())
    groups = {id(group): group for group in (module.place[0] for module in modules if isinstance(module, MoraLinear))}
    return [*modules, *groups.values()]


def check(model: object) -> None:
    """Raise TypeError unless `model` is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a patched CLIP or a classifier on one")


class OneCall:
    """Lets all projections of a patched model be built together, once for a forward call: that has one set of weights.

    A tower that is called past the model's own `forward` (`encode_image`) builds its projections block by block.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self._threads = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {"group": self.group}

    def __setstate__(self, content: dict[str, Any]) -> None:
        self.__init__(**content)  # type: ignore[misc]

    @property
    def running(self) -> list[ExitStack]:
        """The calls that are running in this thread, the innermost last."""
        return self._threads.__dict__.setdefault("running", [])

    def watch(self, model: nn.Module) -> None:
        """See when a forward call of `model` begins and ends."""
        model.register_forward_pre_hook(self.begin, prepend=True)
        model.register_forward_hook(self.end, always_call=True)

    def leave(self, model: nn.Module) -> None:
        """No longer see it."""
        for hooks in (model._forward_pre_hooks, model._forward_hooks):
            for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is self]:
                del hooks[key]
                model._forward_hooks_always_called.pop(key, None)

    @library_hook
    def begin(self, model: nn.Module, *_: Any) -> None:
        """Open a block for one call, where none is open."""
        if not torch.compiler.is_compiling():
            block = ExitStack()
            if kept.scope_of(self.group) is None:
                block.enter_context(kept.keeping([model, self.group], lasting=False))
            self.running.append(block)

    @library_hook
    def end(self, *_: Any) -> None:
        """Close it."""
        if not torch.compiler.is_compiling() and self.running:
            self.running.pop().close()
