"""Errors that name the argument, what came and what was expected, before any kernel runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from mora_kernels.factors import Factors


def check_tensor(name: str, tensor: object, shape: tuple[int | None, ...], like: Tensor | None = None) -> Tensor:
    """Return `tensor` if it is a floating-point tensor of `shape` (None: any size) on the device of `like`."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: got {type(tensor).__name__}, expected a Tensor")
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: got dtype {tensor.dtype}, expected a floating-point dtype")
    sizes = tensor.shape
    fits = len(sizes) == len(shape)
    for have, want in zip(sizes, shape, strict=False):
        fits = fits and (want is None or have == want)
    if not fits:
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected ({expected})")
    if like is not None and tensor.device != like.device:
        raise ValueError(f"{name}: got device {tensor.device}, expected {like.device}, that of weight")
    return tensor


def as_tuple(other_common: Tensor | Sequence[Tensor] | None) -> tuple[Tensor, ...] | None:
    """Return the other modalities' factors as a tuple; None stands for "no Gram term" and stays None."""
    if other_common is None:
        return None
    return (other_common,) if isinstance(other_common, Tensor) else tuple(other_common)


def check_factors(one: Factors) -> None:
    """Check the factors of one projection against its weight [out, in] and against each other."""
    weight, common, others = one.weight, one.common, one.other_common
    check_tensor("weight", weight, (None, None))
    rows, columns = weight.shape
    if rows != columns and one.common_out is None:
        raise ValueError(
            f"weight: got shape {tuple(weight.shape)} and no common_out, expected a square matrix: "
            f"the common update S_out G S^T of this one needs common_out ({rows}, r_c) beside common ({columns}, r_c)"
        )
    check_tensor("common", common, (columns, None), weight)
    rank = common.shape[1]
    if rank == 0:
        raise ValueError(f"common: got shape {tuple(common.shape)}, expected a rank of at least 1")
    if one.common_out is not None:
        check_tensor("common_out", one.common_out, (rows, rank), weight)
    if others is not None and len(others) == 0:
        raise ValueError("other_common: got an empty list, expected at least one factor, or None for no Gram term")
    for position, other in enumerate(others or ()):
        name = "other_common" if len(others or ()) == 1 else f"other_common[{position}]"
        check_tensor(name, other, (None, rank), weight)
    check_tensor("common_magnitude", one.common_magnitude, (columns,), weight)
    check_specific(one)
    for name in ("alpha", "gram_scale"):
        if not isinstance(value := getattr(one, name), (int, float)) or not math.isfinite(value):
            raise ValueError(f"{name}: got {value!r}, expected a finite number")


def check_specific(one: Factors) -> None:
    """Check that the specific term is whole (A, B and magnitude) or absent (all None)."""
    weight, specific_a = one.weight, one.specific_a
    rows, columns = weight.shape
    parts = {"specific_a": specific_a, "specific_b": one.specific_b, "specific_magnitude": one.specific_magnitude}
    absent = [name for name, part in parts.items() if part is None]
    if len(absent) == 3:
        return
    if absent:
        raise ValueError(f"{absent[0]}: got None, expected a Tensor, or None for all of {', '.join(parts)}")
    check_tensor("specific_a", specific_a, (columns, None), weight)
    assert specific_a is not None
    if specific_a.shape[1] == 0:
        raise ValueError(f"specific_a: got shape {tuple(specific_a.shape)}, expected a rank of at least 1")
    check_tensor("specific_b", one.specific_b, (specific_a.shape[1], rows), weight)
    check_tensor("specific_magnitude", one.specific_magnitude, (columns,), weight)


def check_linear(x: Tensor, weight: Tensor, bias: Tensor | None, dropout_p: float) -> None:
    """Check the input [..., in], the bias [out] and the dropout probability of one projection."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x: got {type(x).__name__}, expected a Tensor")
    if not x.is_floating_point() or x.dtype.itemsize < 2:
        raise TypeError(f"x: got dtype {x.dtype}, expected a floating-point dtype of at least 16 bits")
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (..., {weight.shape[1]})")
    if x.device != weight.device:
        raise ValueError(f"x: got device {x.device}, expected {weight.device}, that of weight")
    if bias is not None:
        check_tensor("bias", bias, (weight.shape[0],), weight)
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p: got {dropout_p!r}, expected a probability in [0, 1)")
