"""What is kept of a model: nothing between two calls, but where somebody asks for it (`keeping`, `forget`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from mora.bases.sharded import is_managed
from mora.lora.group import LoraGroup
from mora.projection.adapted import Adapted
from mora.system.checks import check_whole
from mora.system.hooks import Calls
from mora_kernels import Group, kept
from mora_kernels.shelf import MOST


@contextmanager
def keeping(model: nn.Module, adapters: int = MOST) -> Iterator[nn.Module]:
    """Within the block W_eff, casts and what stands for missing inputs are computed once, not at every call.

        with torch.inference_mode(), mora.keeping(model):
            for batch in loader: model(*batch)

    Changes that autograd counts (optimizers, `load_state_dict`, in-place operators) are noticed within it. One that no
    counter sees (`.data`, an average that is swapped in, another process) is not: make it outside the block, or call
    `mora.forget(model)` after it. The block is this thread's own. Outside, nothing is ever kept, so nothing is stale.
    Of a model that `fully_shard` was applied to nothing is kept: nobody counts what its steps write.

    Args:
        model: a patched CLIP, a `MissingModalityClassifier`, or anything that holds one.
        adapters: of a model with several, how many have their W_eff kept at once: each takes as much memory as the
            weights that it adapts, in each thread. The one that was used least recently gives way.

    Raises ValueError for `adapters` below 1.
    """
    check(model)
    check_whole("adapters", adapters, 1)
    with nullcontext() if is_managed(model) else kept.keeping(owners_of(model), most=adapters):
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
        if not isinstance(owner, nn.Module):
            owner.invalidate()


def owners_of(model: nn.Module) -> list[Any]:
    """Everything in a model that may keep something: its modules, and the groups of its projections."""
    modules = list(model.modules())
    groups = {id(group): group for group in (module.place[0] for module in modules if isinstance(module, Adapted))}
    return [*modules, *groups.values()]


def check(model: object) -> None:
    """Raise TypeError unless `model` is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a patched CLIP or a classifier on one")


def one_call(model: nn.Module, groups: Sequence[Group | LoraGroup]) -> AbstractContextManager[object]:
    """A block in which all projections of a model are built once, where nobody asked to keep them for longer.

    Args:
        model: the CLIP.
        groups: of its adapters, a group each.
    """
    if torch.compiler.is_compiling() or all(kept.scope_of(group) is not None for group in groups):
        return nullcontext()
    return kept.keeping([one for one in (model, *groups) if kept.scope_of(one) is None], lasting=False)


class OneCall(Calls):
    """Lets all projections of a patched model be built together, once for a forward call: that has one set of weights.

    A tower that is called past the model's own `forward` (`encode_image`) builds its projections block by block.
    """

    def __init__(self, groups: Sequence[Group | LoraGroup]) -> None:
        super().__init__()
        self.groups = groups

    def open(self, module: nn.Module) -> ExitStack:
        """A block for one call."""
        block = ExitStack()
        block.enter_context(one_call(module, self.groups))
        return block

    def close(self, call: ExitStack) -> None:
        """End it."""
        call.close()
