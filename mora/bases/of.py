"""Which base a linear is; ValueError, with the way out, for one that cannot be adapted."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mora.bases import accelerate, bitsandbytes, torchao
from mora.bases.base import Base

KINDS = (bitsandbytes, torchao, accelerate)  # the last one knows linears that are plain but for where they are


def base_of(linear: Any, path: str = "") -> Base | None:
    """The base of a linear; None where its weight is a parameter of its own, or it is nobody's that is known.

    Args:
        linear: any module.
        path: in the model, for errors.

    Raises ValueError for a linear of a library that is known, in a state that cannot be adapted.
    """
    for kind in KINDS:
        if (base := kind.base_of(linear, path)) is not None:
            return base
    return None


def outline_of(linear: Any) -> Tensor:
    """A tensor of the shape, dtype and device of a linear's W: the weight itself where it is plain."""
    base = base_of(linear)
    return linear.weight if base is None else base.outline


def weight_of(linear: Any) -> Tensor:
    """W [out, in] of a linear, dequantised."""
    base = base_of(linear)
    return linear.weight if base is None else base.weight()
