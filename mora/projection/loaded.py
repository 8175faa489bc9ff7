"""After weights were loaded under an adapter: is its start still theirs?"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CHANGED = 1e-3  # relative, of norms


def follow_weight(
    projection: Any, loaded: bool, norms: Callable[[Tensor], Tensor], untouched: Callable[[Any], bool]
) -> None:
    """Start an untouched projection anew from the weight that is there now; warn where a trained one stands on another.

    Args:
        projection: with the `weight`, the `start` (norms of the weight it began from) and `settle` of an adapter.
        loaded: whether the adapter's own tensors came with the weight, and so belong to it.
        norms: of a weight, what `start` holds.
        untouched: whether nothing was trained or loaded into a projection since its start.
    """
    if loaded:
        projection.start = norms(projection.weight).cpu()
    elif projection.start is None or untouched(projection):
        projection.settle()
    elif differ(norm := norms(projection.weight).cpu(), projection.start):
        projection.start = norm
        warnings.warn(
            "mora: other base weights were loaded under adapters trained on those before; expected the weights first "
            "and the adapters then: mora.load_adapter again, or unpatch and patch anew",
            stacklevel=3,
        )


def differ(norm: Tensor, start: Tensor) -> bool:
    """Whether norms are no longer those of the start."""
    norm, start = norm.double(), start.double()
    return not bool(torch.linalg.vector_norm(norm - start) <= CHANGED * torch.linalg.vector_norm(start))
