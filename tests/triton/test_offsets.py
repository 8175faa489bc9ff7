"""Elements past 2^31, on memory that is only reserved; `test_report.py` looks at the addresses in compiled code."""

import mmap
import sys

import numpy as np
import pytest
import torch

import mora_kernels
from mora_kernels.testing import WEIGHT_TOLERANCE, assert_parity, make_factors

SIZE, STRIDE = 24, 1 << 27  # the last row begins 3.1e9 float32 elements, 12 GB, after the first


@pytest.fixture
def far_apart():
    """[24, 24] of float32 whose rows lie 512 MB apart: 12 GB of addresses, a page a row of memory."""
    length = 4 * (SIZE * STRIDE)
    reserve = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    try:
        memory = mmap.mmap(-1, length, flags=reserve)
    except (OSError, ValueError):
        pytest.skip("this system does not reserve 12 GB of addresses")
    flat = torch.from_numpy(np.frombuffer(memory, dtype=np.float32))
    return flat.as_strided((SIZE, SIZE), (STRIDE, 1))


@pytest.mark.skipif(sys.platform != "linux", reason="needs memory that is committed when it is touched")
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_rows_far_apart(far_apart, backend):
    """An offset in 32 bits would read the zeros of another row, or another process's memory."""
    factors = make_factors(SIZE, (16,), rank=2).to(torch.float32)
    far_apart.copy_(factors.weight)
    arguments = factors.arguments()[1:]
    assert far_apart.stride(0) * (SIZE - 1) > 2**31
    expected = mora_kernels.effective_weight(factors.weight, *arguments, backend="reference")
    actual = mora_kernels.effective_weight(far_apart, *arguments, backend=backend)
    assert_parity("weight", actual, expected, WEIGHT_TOLERANCE)
    grads = [torch.autograd.grad(w.square().sum(), factors.common, retain_graph=True)[0] for w in (actual, expected)]
    assert_parity("common", *grads, {torch.float32: 5e-6})


@pytest.mark.gpu
def test_more_than_two_billion_elements():
    """On the device: the last rows of a 4.3 GB input are what they are alone."""
    factors = make_factors(64, (48,), rank=4).to(torch.float16, factors=torch.float32, device="cuda")
    x = torch.zeros(2**31 // 64 + 8, 64, dtype=torch.float16, device="cuda")
    x[-8:] = torch.randn(8, 64, device="cuda").half()
    arguments = factors.weight, None, *factors.arguments()[1:]
    with torch.no_grad():
        whole = mora_kernels.mora_linear(x, *arguments, backend="triton")
        assert torch.equal(whole[-8:], mora_kernels.mora_linear(x[-8:], *arguments, backend="triton"))
        x.fill_(1)
        dropped = mora_kernels.mora_linear(x, *arguments, dropout_p=0.5, backend="triton")
        assert torch.isfinite(dropped[-8:]).all() and not torch.equal(dropped[-8:], whole[-8:])
