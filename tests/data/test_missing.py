"""The missing table: exact counts, one modality at most, a seed of its own."""

import random

import pytest
import torch

from mora.data.missing import missing_table


@pytest.mark.parametrize(("kind", "expected"), [("text", (3, 7, 0)), ("image", (3, 0, 7)), ("both", (3, 4, 3))])
def test_counts_follow_the_protocol(kind: str, expected: tuple[int, int, int]) -> None:
    table = missing_table(10, 0.7, kind, seed=0)
    assert table.dtype == torch.float32
    assert table.shape == (10,)
    assert tuple(int((table == value).sum()) for value in (0, 1, 2)) == expected


def test_both_ratio_is_the_share_without_image() -> None:
    table = missing_table(1000, 0.5, "both", seed=0, both_ratio=0.2)
    assert int((table == 2).sum()) == 100
    assert int((table == 1).sum()) == 400


@pytest.mark.parametrize("n", [0, 1, 7])
def test_extreme_rates(n: int) -> None:
    assert not missing_table(n, 0.0, "both", seed=0).any()
    assert missing_table(n, 1.0, "both", seed=0).all()


def test_seed_decides_and_the_global_generators_do_not() -> None:
    random.seed(1)
    torch.manual_seed(1)
    state, torch_state = random.getstate(), torch.get_rng_state()
    first = missing_table(100, 0.7, "both", seed=3)
    assert random.getstate() == state
    assert torch.equal(torch.get_rng_state(), torch_state)
    random.seed(2)
    assert torch.equal(first, missing_table(100, 0.7, "both", seed=3))
    assert not torch.equal(first, missing_table(100, 0.7, "both", seed=4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": -1}, "n: got -1"),
        ({"rate": 1.5}, "rate: got 1.5"),
        ({"rate": float("nan")}, "rate: got nan"),
        ({"kind": "audio"}, "kind: got 'audio', expected one of 'text', 'image', 'both'"),
        ({"both_ratio": -0.1}, "both_ratio: got -0.1"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        missing_table(**{"n": 10, "rate": 0.7, "kind": "both", "seed": 0, **arguments})
