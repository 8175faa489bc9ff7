"""What `tests/interpreter.py` does to Triton's interpreter changes no bit, and an overflow of integers is an error."""

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

import mora_kernels
from tests.conftest import INTERPRETED, QUICK
from tests.interpreter import quicken
from tests.triton.cases import make

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="about the interpreter")


@triton.jit
def combine(x, y, operation: tl.constexpr):
    if operation == "add":
        return x + y
    if operation == "sub":
        return x - y
    return x * y


@triton.jit
def kernel(x, y, out, n, operation: tl.constexpr):
    index = tl.arange(0, 4)
    inside = index < n
    given = tl.load(x + index, inside, 0), tl.load(y + index, inside, 0)
    tl.store(out + index, combine(given[0], given[1], operation), inside)


@pytest.mark.parametrize(
    ("operation", "x", "y"), [("add", 2**31 - 2, 1), ("sub", 1 - 2**31, 1), ("mul", 2**30, -2)], ids=str
)
def test_the_last_number_that_fits_and_the_first_that_does_not(operation, x, y):
    out = torch.zeros(3, dtype=torch.int32)
    others = [torch.tensor([1, 2, n], dtype=torch.int32) for n in (x, y)]
    kernel[(1,)](*others, out, 3, operation=operation)
    function = getattr(torch, operation)
    assert torch.equal(out, function(*others)) and out[2].item() == function(torch.tensor(x), torch.tensor(y)).item()
    others[1][2] += 1 if y > 0 else -1
    with pytest.raises(interpreter.InterpreterError, match=f"int32 overflow detected for operation {operation}"):
        kernel[(1,)](*others, out, 3, operation=operation)


def test_shapes_that_upstream_refuses_are_refused():
    assert str(tl.block_type(tl.float32, [2, tl.constexpr(4)])) == "<['2', '4'], fp32>"
    for shape, error in (([], TypeError), ([3], ValueError), ([2, 1 << 20], ValueError), ([2.0], TypeError)):
        with pytest.raises(error):
            tl.block_type(tl.float32, shape)


def results():
    factors = make("rank-33").to(torch.float16, factors=torch.float32)
    torch.manual_seed(3)
    arguments = factors.x, factors.weight, factors.bias, *factors.arguments()[1:]
    y = mora_kernels.mora_linear(*arguments, dropout_p=0.1, backend="triton")
    y.backward(factors.grad)
    return {"y": y, **{name: leaf.grad for name, leaf in factors.leaves().items()}}


def test_the_same_bits_as_upstream():
    quick = results()
    QUICK.undo()
    try:
        upstream = results()
    finally:
        quicken(QUICK)
    assert quick.keys() == upstream.keys()
    for name, value in quick.items():
        assert torch.equal(value, upstream[name]), name
