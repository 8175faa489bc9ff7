"""Dropout of the torch path on a CPU: one mask for both ways, drawn anew each time, of the right share."""

import math

import pytest
import torch

from mora_kernels.torch.dropout import FEWEST, STEPS, dropout, survivors

SHAPE = (131, 257)  # no multiple of four
COUNT = math.prod(SHAPE)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_and_expectation(p):
    torch.manual_seed(0)
    x = torch.ones(64, *SHAPE)
    y = dropout(x, p)
    spread = math.sqrt(p * (1 - p) / x.numel())
    assert abs((y == 0).double().mean() - p) < 4 * spread
    assert abs(y.double().mean() - 1) < 4 * spread / (1 - p)
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - p)), rtol=2 / STEPS / (1 - p), atol=0)


def test_elements_are_independent():
    """Neighbours share a 64-bit draw; pairs, columns and calls must not be alike."""
    torch.manual_seed(1)
    kept = survivors(torch.Size((1 << 20,)), 0.3)[0].double() - 0.7
    for lag in (1, 2, 3, 4, 5, 8, 257):
        assert abs((kept[lag:] * kept[:-lag]).mean()) < 4 * 0.21 / 1024, lag
    by_place = kept.view(-1, 4).mean(dim=0)
    assert by_place.abs().max() < 4 * math.sqrt(0.21) / 512
    other = survivors(torch.Size((1 << 20,)), 0.3)[0].double() - 0.7
    assert abs((kept * other).mean()) < 4 * 0.21 / 1024


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_way_back_has_the_same_mask(dtype):
    x = torch.randn(SHAPE, dtype=dtype, requires_grad=True)
    y = dropout(x, 0.25)
    grad = torch.randn_like(y)
    y.backward(grad)
    kept = y != 0
    scale = STEPS / round(0.75 * STEPS)
    torch.testing.assert_close(y, torch.where(kept, x * scale, 0.0))
    torch.testing.assert_close(x.grad, torch.where(kept, grad * scale, 0.0))
    assert y.dtype == x.grad.dtype == dtype and 0.7 < kept.float().mean() < 0.8


def test_a_seed_gives_the_mask_again_and_no_other_does():
    x = torch.ones(SHAPE)
    torch.manual_seed(7)
    first, second = dropout(x, 0.1), dropout(x, 0.1)
    torch.manual_seed(7)
    assert torch.equal(dropout(x, 0.1), first) and not torch.equal(first, second)


@pytest.mark.parametrize(
    ("shape", "p"), [((FEWEST - 1,), 0.1), (SHAPE, 1e-4), (SHAPE, 1 - 1e-4), ((0, 5), 0.1), (SHAPE, 0.0)]
)
def test_what_is_small_or_rare_is_pytorch_s(shape, p):
    x = torch.ones(shape)
    torch.manual_seed(3)
    ours = dropout(x, p)
    torch.manual_seed(3)
    assert torch.equal(ours, torch.nn.functional.dropout(x, p))


def test_a_view_that_is_not_contiguous():
    x = torch.randn(257, 131).T.requires_grad_()
    y = dropout(x, 0.5)
    y.sum().backward()
    assert y.shape == x.shape and torch.equal(x.grad != 0, y != 0)
