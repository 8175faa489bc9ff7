"""What parity is measured with: one table of tolerances, one comparison, one way to make inputs.

float64 is the oracle. `assert_parity` checks two things for every named tensor: the relative L2 error against the
table, and, when the same formula computed eagerly in the tested dtype is at hand, that no element is further from the
oracle than twice eager's worst error plus the dtype's quantisation floor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mora_kernels.factors import Factors

# Relative L2 error of the weight composition against float64 (measured over 1,296 checks: 3 sizes, 3 ranks, 3 alphas).
WEIGHT_TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-6, torch.float16: 3e-4, torch.bfloat16: 2.5e-3}
# Relative L2 error of what passes through a matrix product of the compute dtype (operands rounded once each).
LINEAR_TOLERANCE = {torch.float64: 1e-10, torch.float32: 5e-6, torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2}


@dataclass(frozen=True)
class ProjectionInputs:
    """The arguments of `effective_weight`, in its order, and `x`, `bias`, `grad` of a linear around it."""

    weight: Tensor
    common: Tensor
    other_common: list[Tensor] | None
    specific_a: Tensor | None
    specific_b: Tensor | None
    common_magnitude: Tensor
    specific_magnitude: Tensor | None
    alpha: float
    x: Tensor
    bias: Tensor
    grad: Tensor
    common_out: Tensor | None = None
    gram_scale: float = 1.0

    def arguments(self) -> tuple[Any, ...]:
        """The positional arguments of `effective_weight`."""
        return (
            self.weight,
            self.common,
            self.other_common,
            self.specific_a,
            self.specific_b,
            self.common_magnitude,
            self.specific_magnitude,
            self.alpha,
        )

    def factors(self) -> Factors:
        """The same as one object."""
        return Factors(*self.arguments())._replace(common_out=self.common_out, gram_scale=self.gram_scale)

    def leaves(self) -> dict[str, Tensor]:
        """Every tensor that can get a gradient, by name."""
        named = {
            "x": self.x,
            "bias": self.bias,
            "common": self.common,
            **{f"other_common[{i}]": other for i, other in enumerate(self.other_common or ())},
            "specific_a": self.specific_a,
            "specific_b": self.specific_b,
            "common_magnitude": self.common_magnitude,
            "specific_magnitude": self.specific_magnitude,
            "common_out": self.common_out,
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def to(self, dtype: torch.dtype, factors: torch.dtype | None = None, device: str = "cpu") -> ProjectionInputs:
        """A copy with weight, x, bias and grad in `dtype` and the factors in `factors`; fresh leaves."""
        factors = factors or dtype

        def leaf(tensor: Tensor | None, kind: torch.dtype) -> Any:
            return None if tensor is None else tensor.detach().to(device, kind).clone().requires_grad_()

        wide: dict[str, Any] = {name: leaf(getattr(self, name), dtype) for name in ("x", "bias")}
        thin: dict[str, Any] = {
            name: leaf(getattr(self, name), factors)
            for name in ("common", "specific_a", "specific_b", "common_magnitude", "specific_magnitude", "common_out")
        }
        others = None if self.other_common is None else [leaf(other, factors) for other in self.other_common]
        plain: dict[str, Any] = {name: getattr(self, name).detach().to(device, dtype) for name in ("weight", "grad")}
        return replace(self, **wide, **thin, **plain, other_common=others)


def make_factors(
    size: int,
    other_sizes: tuple[int, ...] = (48,),
    rank: int = 4,
    common_rank: int | None = None,
    alpha: float = 0.01,
    rows: int = 37,
    trained: bool = True,
    zero_columns: int = 0,
    seed: int = 0,
    out: int | None = None,
    gram_scale: float = 1.0,
) -> ProjectionInputs:
    """Return float64 inputs of one projection; `trained`: B != 0, magnitudes of mixed sign, some u near 0.

    `size` is the width of the input, and of the output unless `out` says another: then there is a `common_out`.
    """
    generator = torch.Generator().manual_seed(seed)
    common_rank = common_rank or rank

    def normal(*shape: int, std: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) * std

    rows_out = out or size
    weight = normal(rows_out, size, std=size**-0.5)
    weight[:, :zero_columns] = 0.0
    norm = torch.linalg.vector_norm(weight, dim=0)
    common_magnitude, specific_magnitude = norm.clone(), norm.clone()
    if trained:
        common_magnitude = common_magnitude * (1 + 0.3 * normal(size))
        specific_magnitude = specific_magnitude * (1 + 0.3 * normal(size))
        common_magnitude[::5] *= -1
    return ProjectionInputs(
        weight=weight,
        common=normal(size, common_rank, std=common_rank**-0.5),
        other_common=[normal(other, common_rank, std=common_rank**-0.5) for other in other_sizes] or None,
        specific_a=normal(size, rank, std=rank**-0.5),
        specific_b=normal(rank, rows_out, std=0.1 if trained else 0.0),
        common_magnitude=common_magnitude,
        specific_magnitude=specific_magnitude,
        alpha=alpha,
        x=normal(rows, size),
        bias=normal(rows_out, std=0.1),
        grad=normal(rows, rows_out),
        common_out=None if out is None else normal(out, common_rank, std=common_rank**-0.5),
        gram_scale=gram_scale,
    )


def assert_parity(
    name: str, actual: Tensor, oracle: Tensor, tolerance: dict[torch.dtype, float], eager: Tensor | None = None
) -> None:
    """Raise AssertionError with the tensor's name and its errors unless `actual` is close enough to `oracle`."""
    dtype = actual.dtype
    want = oracle.detach().double()  # compared where the oracle is: on a GPU large tensors take long to bring home
    got = actual.detach().to(want.device).double()
    assert got.shape == want.shape, f"{name}: got shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    assert torch.isfinite(got).all(), f"{name}: {int((~torch.isfinite(got)).sum())} elements are not finite"
    scale = want.norm().clamp(min=torch.finfo(torch.float64).tiny)
    relative = float((got - want).norm() / scale)
    assert relative <= tolerance[dtype], f"{name} ({dtype}): relative L2 {relative:.2e} > {tolerance[dtype]:.2e}"
    if eager is not None and want.numel():
        error, eager_error = (
            (tensor.to(want.device).double() - want).abs().max() for tensor in (actual, eager.detach())
        )
        floor = torch.finfo(dtype).eps * want.abs().max()
        bound = float(2 * (eager_error + floor))
        assert float(error) <= bound, f"{name} ({dtype}): max error {float(error):.2e} > 2 x eager's = {bound:.2e}"
