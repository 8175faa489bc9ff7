"""`effective_weight`: parity of the torch backend, gradcheck, and properties of equation (1)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mora_kernels
from mora_kernels.reference import direction, gram
from mora_kernels.testing import WEIGHT_TOLERANCE, ProjectionInputs, assert_parity, make_factors
from tests.kernels.cases import CASES, make

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
ids = {"ids": lambda value: str(value).removeprefix("torch.")}


def run(factors: ProjectionInputs, backend: str) -> dict[str, torch.Tensor]:
    """Return W_eff and the gradient of sum(W_eff * c) by every factor, by name; c in multiples of 1/64, exact."""
    scale = factors.gram_scale
    weight = mora_kernels.effective_weight(*factors.arguments(), backend=backend, gram_scale=scale)
    probe = (torch.arange(weight.numel()).view_as(weight) * 37 % 129 - 64).to(weight.dtype) / 64
    weight.backward(probe)
    leaves = {name: leaf.grad for name, leaf in factors.leaves().items() if name not in ("x", "bias")}
    return {"weight": weight, **leaves}


@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize("case", CASES)
def test_torch_backend_and_every_gradient(case, dtype):
    factors = make(case).to(dtype, factors=torch.float64 if dtype == torch.float64 else torch.float32)
    actual = run(factors, "torch")
    oracle = run(factors.to(torch.float64), "reference")
    for name in actual:
        tolerance = WEIGHT_TOLERANCE if name == "weight" else {**WEIGHT_TOLERANCE, torch.float32: 5e-6}
        assert_parity(name, actual[name], oracle[name], tolerance)


def test_half_precision_factors_get_gradients_of_their_dtype():
    factors = make("food101").to(torch.bfloat16)
    for name, gradient in run(factors, "torch").items():
        assert gradient.dtype == torch.bfloat16, name


@pytest.mark.parametrize("case", ["food101", "zero-columns", "three-modalities", "mean-of-two", "no-gram", "odd"])
def test_gradcheck(case):
    small = {"size": 9, "rank": 2, "common_rank": 3}
    factors = make(case, **small, trained=True).to(torch.float64)
    names = list(factors.leaves())[2:]

    def weight(*leaves):
        named = dict(zip(names, leaves, strict=True))
        others = [named[name] for name in names if name.startswith("other")] or None
        return mora_kernels.effective_weight(
            factors.weight,
            named["common"],
            others,
            named["specific_a"],
            named["specific_b"],
            named["common_magnitude"],
            named["specific_magnitude"],
            factors.alpha,
            backend="torch",
            gram_scale=factors.gram_scale,
        )

    assert torch.autograd.gradcheck(weight, tuple(factors.leaves().values())[2:], fast_mode=False)


def test_double_backward_is_refused():
    factors = make("food101").to(torch.float64)
    weight = mora_kernels.effective_weight(*factors.arguments(), backend="torch")
    (first,) = torch.autograd.grad(weight.square().sum(), factors.specific_a, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_without_the_specific_term(backend):
    factors = make("food101")
    weight = mora_kernels.effective_weight(
        factors.weight, factors.common, factors.other_common, None, None, factors.common_magnitude, None, 0.05,
        backend=backend,
    )  # fmt: skip
    common = factors.common @ gram(factors.other_common[0]) @ factors.common.T
    expected = factors.common_magnitude * direction(factors.weight + 0.05 * common)
    assert_parity("weight", weight, expected, WEIGHT_TOLERANCE)


def test_column_norms_that_cancel_stay_right():
    """W = -alpha C + noise: the expanded form of the squared norm would lose every digit."""
    factors = make("hateful_memes")
    update = factors.common @ gram(factors.other_common[0]) @ factors.common.T
    noise = torch.randn(64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    factors = ProjectionInputs(**{**vars(factors), "weight": (1e-3 * noise - 0.1 * update).float().double()})
    weight = mora_kernels.effective_weight(*factors.arguments(), backend="torch")
    assert_parity("weight", weight, mora_kernels.effective_weight(*factors.arguments(), backend="reference"),
                  {torch.float64: 1e-9})  # fmt: skip


sizes = st.integers(1, 40)


@settings(max_examples=40, deadline=None)
@given(size=sizes, other=sizes, rank=st.integers(1, 9), alpha=st.floats(1e-4, 1.0), seed=st.integers(0, 99))
def test_common_update_is_symmetric_and_low_rank(size, other, rank, alpha, seed):
    factors = make_factors(size, (other,), rank=rank, alpha=alpha, seed=seed)
    update = factors.common @ mora_kernels.gram(factors.other_common[0]) @ factors.common.T
    assert torch.allclose(update, update.T, atol=1e-12 * float(update.abs().max()))
    assert torch.linalg.matrix_rank(update) <= rank


@settings(max_examples=40, deadline=None)
@given(size=sizes, scale=st.floats(0.1, 100), seed=st.integers(0, 99), backend=st.sampled_from(["reference", "torch"]))
def test_direction_does_not_see_scale(size, scale, seed, backend):
    """Scaling W, S S^T ... and A B together leaves W_eff where it was: only directions and magnitudes count."""
    factors = make_factors(size, (11,), rank=2, alpha=0.05, seed=seed)
    scaled = ProjectionInputs(
        **{
            **vars(factors),
            "weight": factors.weight * scale,
            "common": factors.common * scale**0.5,
            "specific_a": factors.specific_a * scale,
        }
    )
    first, second = (mora_kernels.effective_weight(*f.arguments(), backend=backend) for f in (factors, scaled))
    assert torch.allclose(first, second, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_frozen_weight_gets_no_gradient(backend):
    factors = make("food101").to(torch.float32)
    weight = factors.weight.clone().requires_grad_()
    mora_kernels.effective_weight(weight, *factors.arguments()[1:], backend=backend).sum().backward()
    assert weight.grad is None


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_columns_below_the_floor_of_a_norm(backend):
    """0 < |w_j| < 1e-5 and no update there: divided by 1e-5, not by the norm, and no gradient goes through it."""
    factors = make("food101", size=33).to(torch.float64)
    with torch.no_grad():
        for name in ("common", "specific_a"):
            getattr(factors, name)[:5] = 0
        factors.weight[:, :5] *= 1e-6 / factors.weight[:, :5].norm(dim=0)
        factors.common_magnitude[:5] = factors.specific_magnitude[:5] = 1
    actual = run(factors.to(torch.float32), backend)
    oracle = run(factors, "reference")
    assert 0.19 < oracle["weight"][:, :5].norm(dim=0).min() < oracle["weight"][:, :5].norm(dim=0).max() < 0.21
    for name in actual:
        assert_parity(name, actual[name], oracle[name], {torch.float32: 5e-6})
    columns = actual["weight"][:, :5].double(), oracle["weight"][:, :5].double()
    assert_parity("small columns", *columns, {torch.float64: 5e-6})
    for name in ("common", "specific_a"):
        small = actual[name][:5].double(), oracle[name][:5].double()
        assert_parity(f"small rows of {name}", *small, {torch.float64: 5e-6})
