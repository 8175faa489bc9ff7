"""What a group knows of one adapted projection: its tensors at this moment, and how to tell that they changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim.optimizer import register_optimizer_step_post_hook


class Projection(Protocol):
    """An adapted projection as `Group` reads it, at call time: a module may have moved since.

    `factors()` returns the arguments of `effective_weight` between `weight` and `alpha`, in its order. A projection may
    also have `buffer(dtype, device) -> Tensor | None`: where W_eff is to be written, [d, d] with contiguous rows, for
    instance its rows of a packed q, k, v weight.
    """

    alpha: float

    @property
    def weight(self) -> Tensor:
        """The frozen weight [d, d]."""

    def factors(self) -> tuple[Tensor, Any, Tensor | None, Tensor | None, Tensor, Tensor | None]:
        """S, the other modalities' S (or None), A, B, m_c, m_s."""


class Factors(NamedTuple):
    """The tensors of one projection, as `effective_weight` takes them."""

    weight: Tensor
    common: Tensor
    other_common: tuple[Tensor, ...] | None
    specific_a: Tensor | None
    specific_b: Tensor | None
    common_magnitude: Tensor
    specific_magnitude: Tensor | None
    alpha: float
    buffer: Tensor | None

    def tensors(self) -> list[Tensor]:
        """Every trainable tensor, the shared ones included."""
        own = [self.common, *(self.other_common or ()), self.specific_a, self.specific_b]
        own += [self.common_magnitude, self.specific_magnitude]
        return [part for part in own if part is not None]

    def versions(self) -> tuple[Any, ...]:
        """Return what changes when a value or a place changes, as far as autograd sees.

        In-place changes through `.data` and the like are invisible to it: it is asked only within `keeping`, and on the
        way back.
        """
        every = (self.weight, *self.tensors())
        return *((t.data_ptr(), 0 if t.is_inference() else t._version, t.dtype) for t in every), self.alpha

    def fingerprint(self) -> tuple[Any, ...]:
        """Return `versions`, and what needs a gradient."""
        return self.versions(), tuple(t.requires_grad for t in self.tensors())

    def aliases(self) -> list[Tensor]:
        """Return tensors that keep the memory of these from being given to others."""
        return [t.detach() for t in (self.weight, *self.tensors())]

    def counted(self) -> bool:
        """Whether autograd counts the changes of every tensor: it does not for those made in inference mode."""
        return not any(t.is_inference() for t in (self.weight, *self.tensors()))

    def identity(self) -> tuple[Any, ...]:
        """Return what must be the same for the values to be written where they were before."""
        every = (self.weight, *self.tensors())
        tensors = tuple((id(t), t.shape, t.dtype, t.device) for t in every[1:])
        weight = (self.weight.shape, self.weight.dtype, self.weight.device)
        return *tensors, *weight, None if self.buffer is None else self.buffer.data_ptr()


def snapshot(projection: Projection) -> Factors:
    """Return the present tensors of a projection."""
    common, others, a, b, common_magnitude, specific_magnitude = projection.factors()
    others = None if others is None else (others,) if isinstance(others, Tensor) else tuple(others)
    alpha = float(projection.alpha)
    return Factors(projection.weight, common, others, a, b, common_magnitude, specific_magnitude, alpha, None)


def place(projection: Projection, one: Factors, dtype: torch.dtype) -> Factors:
    """Return `one` with the buffer its projection offers for W_eff in `dtype`, if it offers one."""
    offer = getattr(projection, "buffer", None)
    return one if offer is None else one._replace(buffer=offer(dtype, one.weight.device))


def distinct(factors: Sequence[Factors]) -> list[Tensor]:
    """Return every trainable tensor of a group once, in a fixed order."""
    return list({id(tensor): tensor for one in factors for tensor in one.tensors()}.values())


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
