"""`build` for one projection: allocate, choose the grid, launch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from mora_kernels.launches import launch
from mora_kernels.triton.build.backward import build_one_backward_kernel
from mora_kernels.triton.build.forward import build_one_kernel
from mora_kernels.triton.configs import padded_rank, settings


class Sizes(NamedTuple):
    """The four numbers that shape a projection, and the lengths that follow from them, in elements."""

    rows: int
    columns: int
    common: int
    specific: int

    @property
    def longest(self) -> int:
        """The longer side of the weight."""
        return max(self.rows, self.columns)

    @property
    def thin(self) -> int:
        """Length of [u | U | V']."""
        return self.columns + (self.rows + self.columns) * (self.common + self.specific)

    @property
    def saved(self) -> int:
        """Length of [n_c | n_s | Z_c | Z_s | Z_c G | G]."""
        return self.columns * (2 + 2 * self.common + self.specific) + self.common**2

    @property
    def padded(self) -> dict[str, int]:
        """The ranks as the kernels see them."""
        return {"RC": padded_rank(self.common), "RS": padded_rank(self.specific)}


def sizes(weight: Tensor, common: Tensor, specific_a: Tensor | None) -> Sizes:
    """Return the sizes of a projection with these factors."""
    rows, columns = weight.shape
    return Sizes(rows, columns, common.shape[1], 0 if specific_a is None else specific_a.shape[1])


def row_major(weight: Tensor) -> Tensor:
    """Return `weight`, copied only if its rows are not contiguous."""
    return weight if weight.stride(1) == 1 else weight.contiguous()


def build(
    weight: Tensor,
    common: Tensor,
    gram: Tensor,
    specific_a: Tensor | None,
    specific_b: Tensor | None,
    common_magnitude: Tensor,
    specific_magnitude: Tensor | None,
    common_out: Tensor | None,
    alpha: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the flat thin tensors [u | U | V'] and what backward needs, both float32, and W_eff in `dtype`."""
    shape = sizes(weight, common, specific_a)
    weight = row_major(weight)
    thin = torch.empty(shape.thin, dtype=torch.float32, device=weight.device)
    saved = torch.empty(shape.saved, dtype=torch.float32, device=weight.device)
    effective = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    absent = common  # a valid address; a specific rank of 0 masks every access
    parts = [common, common_out, gram, specific_a, specific_b, common_magnitude, specific_magnitude]
    pointers = [absent if part is None else part.contiguous() for part in parts]
    options = settings("build", weight.device, max(shape.common, shape.specific))
    launch(
        build_one_kernel, (triton.cdiv(shape.longest, options["BN"]),),
        weight, weight.stride(0), *pointers, thin, saved, effective, *shape, alpha, **shape.padded,
        SQUARE=common_out is None, **options,
    )  # fmt: skip
    return thin, saved, effective


def build_backward(
    grad: Tensor,
    thin: Tensor,
    saved: Tensor,
    weight: Tensor,
    common: Tensor,
    specific_a: Tensor | None,
    specific_b: Tensor | None,
    common_magnitude: Tensor,
    specific_magnitude: Tensor | None,
    common_out: Tensor | None,
    alpha: float,
) -> tuple[Tensor, ...]:
    """Return dS, dG, dA, dB, dm_c, dm_s, dS_out from the gradient of thin; that of an absent tensor is empty."""
    shape = sizes(weight, common, specific_a)
    weight = row_major(weight)
    parts = [common, specific_a, specific_b, common_magnitude, specific_magnitude, common_out]
    read = [common, common_out, specific_a, common_magnitude, specific_magnitude]
    pointers = [common if part is None else part.contiguous() for part in read]
    like = [common, saved.new_empty(shape.common, shape.common), *parts[1:]]
    outs = [saved.new_empty(0) if part is None else torch.empty(part.shape, dtype=part.dtype, device=part.device)
            for part in like]  # fmt: skip
    op = "build_backward" if common_out is None else "build_backward_sides"
    options = settings(op, weight.device, max(shape.common, shape.specific))
    launch(
        build_one_backward_kernel, (triton.cdiv(shape.longest, options["BM"]) + 1, 2 if shape.specific else 1),
        weight, weight.stride(0), *pointers, thin, saved, grad.contiguous(), *outs, *shape, alpha,
        **shape.padded, SQUARE=common_out is None, **options,
    )  # fmt: skip
    return tuple(outs)
