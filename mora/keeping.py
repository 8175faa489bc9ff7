"""What is kept of a model: nothing between two calls, but where somebody asks for it (`keeping`, `forget`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from mora.hooks import Calls
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


def one_call(model: nn.Module, group: Group) -> AbstractContextManager[object]:
    """A block in which all projections of a model are built once, where nobody asked to keep them for longer."""
    if torch.compiler.is_compiling() or kept.scope_of(group) is not None:
        return nullcontext()
    return kept.keeping([model, group], lasting=False)


class OneCall(Calls):
    """Lets all projections of a patched model be built together, once for a forward call: that has one set of weights.

    A tower that is called past the model's own `forward` (`encode_image`) builds its projections block by block.
    """

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.group = group

    def open(self, module: nn.Module) -> ExitStack:
        """A block for one call."""
        block = ExitStack()
        block.enter_context(one_call(module, self.group))
        return block

    def close(self, call: ExitStack) -> None:
        """End it."""
        call.close()
