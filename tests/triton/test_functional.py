"""The operations with backend="triton": parity of value and every gradient, by name, with poisoned memory."""

import pytest
import torch
import torch.nn.functional as F

import mora_kernels
from mora_kernels.testing import LINEAR_TOLERANCE, WEIGHT_TOLERANCE, ProjectionInputs, assert_parity
from tests.triton.cases import CASES, make

DTYPES = [torch.float32, torch.float16]
SPECIFIC = ("specific_a", "specific_b", "specific_magnitude")


def weigh(factors: ProjectionInputs, backend: str) -> dict[str, torch.Tensor]:
    """Return W_eff and the gradient of sum(W_eff * c) by every factor; c in multiples of 1/64, exact in any dtype."""
    scale = factors.gram_scale
    weight = mora_kernels.effective_weight(*factors.arguments(), backend=backend, gram_scale=scale)
    probe = (torch.arange(weight.numel()).view_as(weight) * 37 % 129 - 64).to(weight.dtype) / 64
    weight.backward(probe)
    leaves = {name: leaf.grad for name, leaf in factors.leaves().items() if name not in ("x", "bias")}
    return {"weight": weight, **leaves}


def project(factors: ProjectionInputs, backend: str, **options) -> dict[str, torch.Tensor]:
    """Return y and the gradient of sum(y * grad) by every leaf, by name."""
    options = {"backend": backend, "gram_scale": factors.gram_scale, **options}
    y = mora_kernels.mora_linear(factors.x, factors.weight, factors.bias, *factors.arguments()[1:], **options)
    y.backward(factors.grad.to(y.dtype).view_as(y))
    return {"y": y, **{name: leaf.grad for name, leaf in factors.leaves().items()}}


def fair(eager: torch.Tensor) -> torch.Tensor | None:
    """Return what to be compared with, if it has enough elements: the worst of five errors may be zero by luck."""
    return eager if eager.numel() >= 32 else None


def compare(actual, oracle, eager, dtype, table):
    for name in actual:
        tolerance = {actual[name].dtype: table[dtype]}
        assert_parity(name, actual[name], oracle[name], tolerance, fair(eager[name]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_effective_weight(case, dtype, launches):
    factors = make(case).to(dtype, factors=torch.float32)
    actual = weigh(factors, "triton")
    oracle, eager = (weigh(factors.to(kind, factors=wide), "reference") for kind, wide in
                     ((torch.float64, torch.float64), (dtype, torch.float32)))  # fmt: skip
    for name in actual:
        tolerance = WEIGHT_TOLERANCE if name == "weight" else {**WEIGHT_TOLERANCE, torch.float32: 5e-6}
        assert_parity(name, actual[name], oracle[name], tolerance, fair(eager[name]))
    assert launches == ["build_one_kernel", "gradient_kernel", "build_one_backward_kernel"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_mora_linear(case, dtype, launches):
    factors = make(case).to(dtype, factors=torch.float32)
    actual = project(factors, "triton")
    oracle, eager = (project(factors.to(kind, factors=wide), "reference") for kind, wide in
                     ((torch.float64, torch.float64), (dtype, torch.float32)))  # fmt: skip
    compare(actual, oracle, eager, dtype, LINEAR_TOLERANCE)
    assert launches == ["build_one_kernel", "gradient_kernel", "build_one_backward_kernel"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_half_precision_factors_get_gradients_of_their_dtype(dtype):
    factors = make("food101").to(dtype)
    oracle = weigh(factors.to(torch.float64), "reference")
    for name, value in weigh(factors, "triton").items():
        assert value.dtype == dtype, name
        assert_parity(name, value, oracle[name], {torch.float32: 5e-6, torch.float16: 5e-4})


def test_without_the_specific_term(launches):
    factors = make("food101").to(torch.float32)
    bare = ProjectionInputs(**{**vars(factors), **dict.fromkeys(SPECIFIC)})
    actual = project(bare, "triton")
    oracle = project(bare.to(torch.float64), "reference")
    for name in actual:
        assert_parity(name, actual[name], oracle[name], LINEAR_TOLERANCE)
    assert "build_one_backward_kernel" in launches


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropout_with_an_explicit_mask_is_exact(dtype):
    """With the mask given, value and gradients are those of the reference on the masked input."""
    factors = make("food101").to(dtype, factors=torch.float32)
    mask = torch.rand(1, *factors.x.shape, generator=torch.Generator().manual_seed(0)) >= 0.25
    y = mora_kernels.triton.mora_linear(factors.x, factors.bias, factors.factors(), dropout_p=0.25, mask=mask)
    y.backward(factors.grad)
    oracle = factors.to(torch.float64)
    dropped = oracle.x * mask[0] / 0.75
    wanted = mora_kernels.mora_linear(dropped, oracle.weight, oracle.bias, *oracle.arguments()[1:], backend="reference")
    wanted.backward(oracle.grad)
    assert_parity("y", y, wanted, LINEAR_TOLERANCE)
    for name, leaf in factors.leaves().items():
        assert_parity(name, leaf.grad, oracle.leaves()[name].grad, {leaf.dtype: LINEAR_TOLERANCE[dtype]})


def test_dropout_is_reproducible_and_unbiased():
    factors = make("food101").to(torch.float32)
    x = torch.ones(67, 64, requires_grad=True)
    arguments = (x, torch.eye(64), None, *factors.arguments()[1:])

    def run(seed):
        torch.manual_seed(seed)
        return mora_kernels.mora_linear(*arguments, dropout_p=0.3, backend="triton")

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))
    dropped = mora_kernels.triton.functional.Dropout.apply(x, torch.tensor([7]), 0.3, torch.float32, None)
    kept = dropped.ne(0)
    assert kept.float().mean() == pytest.approx(0.7, abs=0.02)
    assert torch.equal(dropped[kept], torch.full_like(dropped[kept], 1 / 0.7))
    dropped.sum().backward()
    assert torch.equal(x.grad, dropped), "the mask of backward is that of forward"


def test_dropout_rests_in_eval():
    factors = make("food101").to(torch.float32)
    arguments = (factors.x, factors.weight, factors.bias, *factors.arguments()[1:])
    y = mora_kernels.mora_linear(*arguments, dropout_p=0.3, training=False, backend="triton")
    assert torch.equal(y, mora_kernels.mora_linear(*arguments, backend="triton"))


@pytest.mark.parametrize("shape", [(64,), (0, 64), (5, 64), (2, 0, 64), (2, 3, 4, 64)], ids=str)
def test_leading_dimensions_are_free(shape):
    factors = make("food101").to(torch.float32)
    x = torch.randn(shape, requires_grad=True)
    y = mora_kernels.mora_linear(x, factors.weight, None, *factors.arguments()[1:], dropout_p=0.1, backend="triton")
    assert y.shape == shape
    y.sum().backward()
    assert x.grad.shape == shape and torch.isfinite(factors.common.grad).all()


def test_non_contiguous_inputs():
    factors = make("food101").to(torch.float32)
    wide = torch.randn(64, 37)
    options = {"x": wide.T.requires_grad_(), "weight": factors.weight.T.clone().T,
               "specific_b": factors.specific_b.detach().T.clone().T.requires_grad_()}  # fmt: skip
    strided = ProjectionInputs(**{**vars(factors), **options})
    y = mora_kernels.mora_linear(strided.x, strided.weight, strided.bias, *strided.arguments()[1:], backend="triton")
    y.backward(strided.grad.T.clone().T)
    got = {"y": y, **{name: leaf.grad for name, leaf in strided.leaves().items()}}
    oracle = project(strided.to(torch.float64), "reference")
    for name in got:
        assert_parity(name, got[name], oracle[name], LINEAR_TOLERANCE)


def test_autocast_returns_what_a_linear_returns():
    factors = make("food101").to(torch.float32)
    with torch.autocast("cpu", dtype=torch.float16):
        y = mora_kernels.mora_linear(
            factors.x, factors.weight, factors.bias, *factors.arguments()[1:], backend="triton"
        )
        assert y.dtype == F.linear(factors.x, factors.weight).dtype == torch.float16
        y.backward(factors.grad.half())
    oracle = project(factors.to(torch.float64), "reference")
    assert_parity("y", y, oracle["y"], LINEAR_TOLERANCE)
    for name, leaf in factors.leaves().items():
        assert leaf.grad.dtype == torch.float32, name
        assert_parity(name, leaf.grad, oracle[name], {torch.float32: LINEAR_TOLERANCE[torch.float16]})


def test_products_that_overflow_half_precision_stay_finite():
    """S grown tenfold: alpha S G S^T is beyond float16; W_eff and its gradients are not."""
    factors = make("hateful_memes")
    factors = ProjectionInputs(
        **{**vars(factors), "common": factors.common * 10, "other_common": [factors.other_common[0] * 30]}
    )
    half = factors.to(torch.float16, factors=torch.float32)
    actual, oracle = project(half, "triton"), project(half.to(torch.float64), "reference")
    for name in actual:
        assert_parity(name, actual[name], oracle[name], {actual[name].dtype: LINEAR_TOLERANCE[torch.float16]})
