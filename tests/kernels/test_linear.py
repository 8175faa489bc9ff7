"""`mora_linear`: parity of output and every gradient, dropout, autocast, shapes, compile."""

import pytest
import torch
import torch.nn.functional as F

import mora_kernels
from mora_kernels.testing import LINEAR_TOLERANCE, ProjectionInputs, assert_parity, make_factors
from tests.kernels.cases import CASES, make

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def run(factors: ProjectionInputs, backend: str, **options) -> dict[str, torch.Tensor]:
    """Return y and the gradient of sum(y * grad) by every leaf, by name."""
    options = {"backend": backend, "gram_scale": factors.gram_scale, **options}
    y = mora_kernels.mora_linear(factors.x, factors.weight, factors.bias, *factors.arguments()[1:], **options)
    y.backward(factors.grad.to(y.dtype).view_as(y))
    return {"y": y, **{name: leaf.grad for name, leaf in factors.leaves().items()}}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_torch_backend_and_every_gradient(case, dtype):
    factors = make(case).to(dtype, factors=torch.float64 if dtype == torch.float64 else torch.float32)
    actual = run(factors, "torch")
    oracle = run(factors.to(torch.float64), "reference")
    for name in actual:
        # A half-precision product puts the product's error into a factor's gradient, whatever the factor's own dtype.
        table = {actual[name].dtype: LINEAR_TOLERANCE[dtype]}
        assert_parity(name, actual[name], oracle[name], table)


@pytest.mark.parametrize("case", ["food101", "zero-columns", "no-gram", "three-modalities", "mean-of-two"])
def test_gradcheck(case):
    factors = make(case, size=7, rank=2, common_rank=2, rows=3).to(torch.float64)
    names = list(factors.leaves())

    def linear(*leaves):
        named = dict(zip(names, leaves, strict=True))
        others = [named[name] for name in names if name.startswith("other")] or None
        return mora_kernels.mora_linear(
            named["x"],
            factors.weight,
            named["bias"],
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

    assert torch.autograd.gradcheck(linear, tuple(factors.leaves().values()))


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_dropout_acts_on_the_whole_projection(backend):
    """Base path included: y is the projection of the dropped input, with the mask torch draws at that seed."""
    factors = make("food101").to(torch.float32)
    torch.manual_seed(7)
    y = mora_kernels.mora_linear(
        factors.x, factors.weight, factors.bias, *factors.arguments()[1:], dropout_p=0.3, backend=backend
    )
    torch.manual_seed(7)
    dropped = F.dropout(factors.x, 0.3)
    expected = F.linear(dropped, mora_kernels.effective_weight(*factors.arguments(), backend="reference"), factors.bias)
    assert_parity("y", y, expected, LINEAR_TOLERANCE)
    assert (dropped == 0).float().mean() == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_dropout_rests_in_eval(backend):
    factors = make("food101").to(torch.float32)
    arguments = (factors.x, factors.weight, factors.bias, *factors.arguments()[1:])
    y = mora_kernels.mora_linear(*arguments, dropout_p=0.3, training=False, backend=backend)
    assert torch.equal(y, mora_kernels.mora_linear(*arguments, backend=backend))


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_returns_what_a_linear_returns(backend, dtype):
    factors = make("food101").to(torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        y = mora_kernels.mora_linear(factors.x, factors.weight, factors.bias, *factors.arguments()[1:], backend=backend)
        assert y.dtype == F.linear(factors.x, factors.weight).dtype == dtype
        y.backward(factors.grad.to(dtype))
    oracle = run(factors.to(torch.float64), "reference")
    assert_parity("y", y, oracle["y"], LINEAR_TOLERANCE)
    for name, leaf in factors.leaves().items():
        assert leaf.grad.dtype == torch.float32, name
        assert_parity(name, leaf.grad, oracle[name], {torch.float32: LINEAR_TOLERANCE[dtype]})


@pytest.mark.parametrize("shape", [(64,), (0, 64), (5, 64), (2, 0, 64), (2, 3, 4, 64)], ids=str)
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_leading_dimensions_are_free(shape, backend):
    factors = make("food101").to(torch.float32)
    x = torch.randn(shape, requires_grad=True)
    y = mora_kernels.mora_linear(x, factors.weight, None, *factors.arguments()[1:], backend=backend)
    assert y.shape == shape
    y.sum().backward()
    assert x.grad.shape == shape and torch.isfinite(factors.common.grad).all()


def test_non_contiguous_inputs():
    factors = make("food101").to(torch.float64)
    wide = torch.randn(64, 37, dtype=torch.float64)
    strided = ProjectionInputs(**{**vars(factors), "x": wide.T.requires_grad_(), "weight": factors.weight.T.clone().T})
    packed = ProjectionInputs(**{**vars(factors), "x": wide.T.contiguous(), "weight": factors.weight})
    first = run(strided.to(torch.float64), "torch")
    for name, tensor in run(packed.to(torch.float64), "torch").items():
        assert_parity(name, first[name], tensor, LINEAR_TOLERANCE)
    y = mora_kernels.mora_linear(strided.x, strided.weight, None, *strided.arguments()[1:], backend="torch")
    y.sum().backward()  # the gradient of a sum is an expanded scalar with stride 0


def test_only_what_needs_a_gradient_gets_one():
    factors = make("food101").to(torch.float32)
    for frozen in ("x", "specific_a", "common_magnitude"):
        getattr(factors, frozen).requires_grad_(False)
    run(factors, "torch")
    for name, leaf in factors.leaves().items():
        assert (leaf.grad is None) == (name in ("x", "specific_a", "common_magnitude")), name


def test_nothing_dense_is_saved_for_backward():
    """The saved tensors are x, the thin factors and the frozen weight itself: no copy of d x d."""
    factors = make_factors(256, (96,), rows=5).to(torch.float32)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda t: t):
        mora_kernels.mora_linear(factors.x, factors.weight, factors.bias, *factors.arguments()[1:], backend="torch")
    dense = [t for t in saved if t.numel() >= 256 * 256 and t.data_ptr() != factors.weight.data_ptr()]
    assert not dense


def test_checkpointing_gives_the_same_gradients():
    plain, stored = make("food101").to(torch.float32), make("food101").to(torch.float32)
    expected = run(plain, "torch")

    def forward(x):
        return mora_kernels.mora_linear(x, stored.weight, stored.bias, *stored.arguments()[1:], backend="torch")

    y = torch.utils.checkpoint.checkpoint(forward, stored.x, use_reentrant=False)
    y.backward(stored.grad)
    for name, leaf in stored.leaves().items():
        assert torch.equal(leaf.grad, expected[name]), name


def test_compiles_without_a_graph_break():
    factors = make("food101").to(torch.float32)
    expected = run(make("food101").to(torch.float32), "torch")
    compiled = torch.compile(mora_kernels.mora_linear, fullgraph=True, backend="aot_eager")
    y = compiled(factors.x, factors.weight, factors.bias, *factors.arguments()[1:], backend="torch")
    y.backward(factors.grad)
    assert_parity("y", y, expected["y"], LINEAR_TOLERANCE)
    for name, leaf in factors.leaves().items():
        assert_parity(name, leaf.grad, expected[name], LINEAR_TOLERANCE)
