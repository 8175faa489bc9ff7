"""`gram`: value, gradient, accumulation."""

import pytest
import torch

import mora_kernels
from mora_kernels.testing import WEIGHT_TOLERANCE, assert_parity


@pytest.mark.parametrize("backend", ["reference", "torch", "auto"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_gram_accumulates_wide(backend, dtype):
    factor = (100 * torch.randn(300, 5, generator=torch.Generator().manual_seed(0))).to(dtype)
    result = mora_kernels.gram(factor, backend=backend)
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_parity("gram", result, factor.double().T @ factor.double(), WEIGHT_TOLERANCE)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_gram_gradcheck(backend):
    factor = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: mora_kernels.gram(f, backend=backend), (factor,))
