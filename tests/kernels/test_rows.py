"""What one row of x has stays in that row, and every mix of dtypes is what an `nn.Linear` makes of it."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import mora_kernels
from mora_kernels.testing import make_factors

BACKENDS = ["reference", "torch", "triton"]
BAD = [float("nan"), float("inf")]


class Projection:
    """What `Group` needs of a module."""

    def __init__(self, factors):
        self.all = factors
        self.weight, self.alpha = factors.weight, factors.alpha

    def factors(self):
        return self.all.arguments()[1:7]


def project(kind, backend, factors, x, dropout):
    if kind == "group":
        group = mora_kernels.Group([Projection(factors)], backend)
        return group.linear(0, x, factors.bias, dropout)
    return mora_kernels.mora_linear(x, factors.weight, factors.bias, *factors.arguments()[1:], dropout, backend=backend)


@pytest.mark.parametrize("kind", ["function", "group"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("bad", BAD)
def test_a_row_that_is_not_finite_reaches_no_other(kind, backend, dropout, bad):
    """Bit for bit: the other rows and their gradients are those of an input without it."""
    factors = make_factors(48, (32,), rank=3, rows=9).to(torch.float32)
    clean = torch.randn(9, 48, generator=torch.Generator().manual_seed(0))
    spoiled = clean.clone()
    spoiled[4, 7], spoiled[6] = bad, bad
    others = [0, 1, 2, 3, 5, 7, 8]
    results = []
    for x in (clean, spoiled):
        x.requires_grad_()
        torch.manual_seed(5)
        y = project(kind, backend, factors, x, dropout)
        y.backward(torch.ones_like(y))
        results.append((y.detach(), x.grad))
    (y, grad), (y_spoiled, grad_spoiled) = results
    assert torch.equal(y[others], y_spoiled[others]) and torch.isfinite(y_spoiled[others]).all()
    assert torch.equal(grad[others], grad_spoiled[others])
    if not dropout:
        assert not torch.isfinite(y_spoiled[[4, 6]]).all(dim=1).any()  # and it does not vanish either


DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_mix_of_dtypes(backend, autocast):
    """27 mixes of x, weight and factors: the dtype of `F.linear`, or a TypeError that names x where it raises one.

    Triton's interpreter has no bfloat16: 8 mixes there.
    """
    dtypes = DTYPES[:2] if backend == "triton" else DTYPES
    if backend == "triton" and autocast is torch.bfloat16:
        pytest.skip("Triton's interpreter has no bfloat16")
    for x_dtype, weight_dtype, factor_dtype in itertools.product(dtypes, dtypes, dtypes):
        factors = make_factors(32, (16,), rank=2, rows=3).to(weight_dtype, factors=factor_dtype)
        x = factors.x.detach().to(x_dtype)
        with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
            try:
                expected = F.linear(x, factors.weight).dtype
            except RuntimeError:
                with pytest.raises(TypeError, match=r"^x: got dtype .*expected"):
                    project("function", backend, factors, x, 0.0)
                continue
            y = project("function", backend, factors, x, 0.0)
            assert y.dtype == expected, (x_dtype, weight_dtype, factor_dtype)
            y.float().sum().backward()
        assert factors.common.grad.dtype == factor_dtype and torch.isfinite(factors.common.grad).all()


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("autocast", [False, True])
def test_x_that_is_no_plain_float(backend, dtype, autocast):
    factors = make_factors(32, (16,), rank=2, rows=3).to(torch.float32)
    x = torch.ones(3, 32).to(dtype)
    with torch.autocast("cpu", enabled=autocast), pytest.raises(TypeError, match=rf"^x: got dtype {dtype}, expected"):
        project("function", backend, factors, x, 0.0)
    with torch.autocast("cpu", enabled=autocast), pytest.raises(TypeError, match=rf"^x: got dtype {dtype}, expected"):
        project("group", backend, factors, x, 0.0)
