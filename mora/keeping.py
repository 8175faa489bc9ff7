"""What is kept of a model between two calls, only while somebody asks for it: `keeping`, `forget`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

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
