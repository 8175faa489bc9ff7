"""The table's promise of 16 bytes, which no interpreter sees: made where everything keeps it, and nowhere else."""

import pytest
import torch

from mora_kernels.factors import distinct
from mora_kernels.testing import make_factors
from mora_kernels.triton.group import Engine


def promised(change=lambda one: one, **sizes):
    """What the kernels of one projection are promised."""
    given = make_factors(**{"size": 32, "other_sizes": (48,), "rank": 4, "alpha": 0.1, **sizes})
    one = change(given.to(torch.float32).factors())
    engine = Engine([one], torch.float32, distinct([one]))
    with torch.no_grad():
        engine.build([one], [0])
    return engine.align


def moved(tensor):
    """The same values, four bytes past a multiple of 16."""
    room = torch.empty(tensor.numel() + 1)
    assert room.data_ptr() % 16 == 0
    return room[1:].view(tensor.shape).copy_(tensor.detach())


def test_what_is_aligned_is_promised():
    assert promised() == 16


@pytest.mark.parametrize("size", [33, 34, 36, 40])
def test_widths_that_are_no_multiple_of_16(size):
    assert promised(size=size) == 1


@pytest.mark.parametrize("name", ["weight", "specific_b", "common_magnitude", "specific_magnitude"])
def test_a_tensor_that_begins_elsewhere(name):
    assert promised(lambda one: one._replace(**{name: moved(getattr(one, name))})) == 1


def test_rows_of_another_stride():
    wide = torch.randn(32, 36)
    assert promised(lambda one: one._replace(weight=wide[:, :32])) == 1
