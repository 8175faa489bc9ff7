"""What a group knows of one adapted projection: its tensors at this moment, and how to tell that they changed."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim.optimizer import register_optimizer_step_post_hook

from mora_kernels.factors import Factors, Origin
from mora_kernels.validation import as_tuple


class Projection(Protocol):
    """An adapted projection as `Group` reads it, at call time: a module may have moved since.

    `factors()` returns the arguments of `effective_weight` between `weight` and `alpha`, in its order. A projection may
    also have `common_out`, S_out [out, r_c] of a weight that is not square, or None, and
    `buffer(dtype, device) -> Tensor | None`: where W_eff is to be written, [out, in] with contiguous rows, for instance
    its rows of a packed q, k, v weight. Where `weight` is made whenever it is read (from quantised values), `outline`
    is a tensor of its shape, dtype and device, and `origin() -> Origin` what it is made from: it is read once a build.
    """

    alpha: float

    @property
    def weight(self) -> Tensor:
        """The frozen weight [out, in]."""

    def factors(self) -> tuple[Tensor, Any, Tensor | None, Tensor | None, Tensor, Tensor | None]:
        """S, the other modalities' S (or None), A, B, m_c, m_s."""


def snapshot(projection: Projection) -> Factors:
    """Return the present tensors of a projection."""
    common, others, a, b, common_magnitude, specific_magnitude = projection.factors()
    alpha, common_out = float(projection.alpha), getattr(projection, "common_out", None)
    own = a, b, common_magnitude, specific_magnitude, alpha, common_out
    scale, origin = float(getattr(projection, "gram_scale", 1.0)), origin_of(projection)
    return Factors(outline(projection), common, as_tuple(others), *own, gram_scale=scale, origin=origin)


def outline(projection: Projection) -> Tensor:
    """Return a tensor of the shape, dtype and device of a projection's weight: the weight itself, if it has one."""
    found: Tensor | None = getattr(projection, "outline", None)
    return projection.weight if found is None else found


def origin_of(projection: Projection) -> Origin | None:
    """Return what a weight that is made for each build is made from; None where the weight is there."""
    made = getattr(projection, "origin", None)
    return None if made is None else made()


def place(projection: Projection, one: Factors, dtype: torch.dtype) -> Factors:
    """Return `one` with its weight, and with the buffer its projection offers for W_eff in `dtype`, if any."""
    if one.origin is not None:
        one = one._replace(weight=projection.weight)
    offer = getattr(projection, "buffer", None)
    return one if offer is None else one._replace(buffer=offer(dtype, one.weight.device))


_watched: list[Any] = []


def watch_optimizers() -> None:
    """From now on every optimizer's step moves the version counters of what it changed.

    Fused optimizers (`AdamW(fused=True)`, and those of other packages) write parameters without telling autograd; a
    value kept by version would then be stale, silently.
    """

    def stepped(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        groups = optimizer.param_groups
        increment_version(
            [p for group in groups for p in group["params"] if p.grad is not None and not p.is_inference()]
        )

    if not _watched:
        _watched.append(register_optimizer_step_post_hook(stepped))
