"""Several W_eff of one frozen weight side by side: the same as one projection after another, with one mask."""

import pytest
import torch

from mora_kernels import Group
from mora_kernels.beside import linears_beside
from mora_kernels.testing import assert_parity

TABLE = {torch.float64: 1e-10, torch.float32: 2e-5}
pytestmark = pytest.mark.usefixtures("poisoned")


class One:
    """A projection on a weight that others share."""

    alpha = 0.3

    def __init__(self, weight, rank, seed):
        draw = torch.Generator().manual_seed(seed)
        (rows, columns), like = weight.shape, {"generator": draw, "dtype": weight.dtype}
        self.weight = weight
        self.common, self.other = (torch.randn(columns, rank, **like).requires_grad_() for _ in range(2))
        self.common_out = torch.randn(rows, rank, **like).requires_grad_()
        self.a = torch.randn(columns, rank, **like).requires_grad_()
        self.b = torch.randn(rank, rows, **like).requires_grad_()
        self.magnitudes = [torch.randn(columns, **like).requires_grad_() for _ in range(2)]

    def factors(self):
        return self.common, [self.other], self.a, self.b, *self.magnitudes

    def named(self):
        names = ("common", "other", "common_out", "a", "b", "m_c", "m_s")
        return zip(names, (self.common, self.other, self.common_out, self.a, self.b, *self.magnitudes), strict=True)


def made(backend, dtype):
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 7, generator=draw, dtype=dtype)
    ones = [One(weight, 2, seed) for seed in (1, 2, 3)]
    x = torch.randn(2, 3, 7, generator=draw, dtype=dtype).requires_grad_()
    bias = torch.randn(5, generator=draw, dtype=dtype).requires_grad_()
    return Group(ones, backend), ones, x, bias


def gradients(ones, x, bias, outputs):
    """Of a scalar of what the projections 2 and 0 compute, by name."""
    loss = sum((number + 1) * output.square().sum() for number, output in enumerate(outputs))
    named = {"x": x, "bias": bias} | {f"{i}.{name}": t for i in (0, 2) for name, t in ones[i].named()}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


@pytest.mark.parametrize(("backend", "dtype"), [("torch", torch.float64), ("triton", torch.float32)])
def test_outputs_and_gradients_are_those_of_one_after_another(backend, dtype):
    group, ones, x, bias = made(backend, dtype)
    outputs = linears_beside(group, [2, 0], x, bias)
    actual = gradients(ones, x, bias, outputs)
    reference = Group(ones, "reference")
    expected_outputs = [reference.linear(index, x, bias) for index in (2, 0)]
    for number, (output, expected) in enumerate(zip(outputs, expected_outputs, strict=True)):
        assert_parity(f"y{number}", output, expected, TABLE)
    for name, expected in gradients(ones, x, bias, expected_outputs).items():
        assert_parity(name, actual[name], expected, TABLE)


@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
@torch.no_grad()
def test_all_of_them_see_one_mask(backend):
    """Solved for its input, what each computes comes from the same dropped x."""
    dtype = torch.float32 if backend == "triton" else torch.float64
    group, ones, x, bias = made(backend, dtype)
    outputs = linears_beside(group, [0, 1], x.detach(), bias, dropout_p=0.5)
    weights = torch.cat([Group(ones, "torch").built(index).effective for index in (0, 1)])
    both = torch.cat([output - bias for output in outputs], dim=-1).view(-1, 10)
    dropped = torch.linalg.lstsq(weights.double(), both.double().T).solution.T.view_as(x)
    kept = dropped.abs() > 1e-4
    torch.testing.assert_close(dropped, 2 * x.double() * kept, rtol=1e-3, atol=1e-3)
    assert 0 < kept.double().mean() < 1


def test_a_factor_changed_before_the_backward_pass_is_noticed():
    group, ones, x, bias = made("torch", torch.float64)
    outputs = linears_beside(group, [0, 1], x, bias)
    with torch.no_grad():
        ones[0].a.mul_(2)
    with pytest.raises(RuntimeError, match="modified in place between forward and backward"):
        sum(outputs).sum().backward()


def test_an_input_of_another_dtype_is_refused():
    group, _, x, bias = made("torch", torch.float64)
    with pytest.raises(TypeError, match=r"x: got dtype torch\.float32, expected torch\.float64"):
        linears_beside(group, [0, 1], x.float(), bias)
