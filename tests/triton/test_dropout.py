"""The masks that the fused kernel draws: of the right share, apart for every copy, row, column, quarter of a tile."""

import math

import torch

from mora_kernels.triton.configs import settings
from mora_kernels.triton.dropout import dropout, dropout_backward

OPTIONS = settings("dropout", torch.device("cpu"))
ROWS, COLUMNS = 2 * OPTIONS["BM"] + 3, 8 * OPTIONS["BN"] + 5  # several tiles each way, and a tail
P = 0.3


def masks(copies=4, seed=11, p=P):
    """[copies, ROWS, COLUMNS] of what survives, 1 or 0."""
    x = torch.ones(ROWS, COLUMNS)
    found = torch.stack(dropout(x, torch.tensor([seed]), p, copies, torch.float32))
    assert torch.equal(found.unique(), torch.tensor([0.0, 1 / (1 - p)]))
    return (found != 0).double()


def alike(one, other):
    """Whether two masks agree more, or less, often than independent ones would (4 standard deviations)."""
    one, other = one.flatten() - (1 - P), other.flatten() - (1 - P)
    return abs((one * other).mean()) > 4 * P * (1 - P) / math.sqrt(one.numel())


def test_every_copy_has_a_mask_of_its_own():
    found = masks()
    for i in range(4):
        for j in range(i):
            assert not alike(found[i], found[j]), (i, j)


def test_rows_columns_and_quarters_are_independent():
    mask = masks(1)[0]
    for lag in (1, 2, OPTIONS["BM"]):
        assert not alike(mask[lag:], mask[:-lag]), f"rows {lag} apart"
    for lag in (1, 2, OPTIONS["BN"], 2 * OPTIONS["BN"], 3 * OPTIONS["BN"], 4 * OPTIONS["BN"]):
        assert not alike(mask[:, lag:], mask[:, :-lag]), f"columns {lag} apart"


def test_the_share_that_is_dropped():
    """To 1 % of p: an error of 2 % is seen."""
    dropped = 1 - torch.cat([masks(seed=seed, p=0.5).flatten() for seed in range(5)])
    assert abs(dropped.mean() - 0.5) < 4 * 0.5 / math.sqrt(dropped.numel()) < 0.01 * 0.5


def test_a_seed_draws_the_masks_again_on_the_way_back():
    found, seed = masks(2), torch.tensor([11])
    grads = [torch.full((ROWS, COLUMNS), value) for value in (1.0, 2.0)]
    back = dropout_backward(grads, seed, P, torch.float32)
    expected = sum(value * mask / (1 - P) for value, mask in zip((1.0, 2.0), found, strict=True))
    torch.testing.assert_close(back.double(), expected, rtol=1e-6, atol=1e-6)
    assert alike(found[0], masks(1)[0]) and not alike(found[0], masks(1, seed=12)[0])
