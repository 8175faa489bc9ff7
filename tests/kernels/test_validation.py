"""Every wrong argument of the public operations is named, with what came and what was expected."""

import pytest
import torch

import mora_kernels
from mora_kernels.testing import make_factors

NAMES = [
    "weight",
    "common",
    "other_common",
    "specific_a",
    "specific_b",
    "common_magnitude",
    "specific_magnitude",
    "alpha",
]


def arguments(**wrong):
    factors = make_factors(8, (6,), rank=2).to(torch.float32)
    return {**dict(zip(NAMES, factors.arguments(), strict=True)), **wrong}


WRONG = {
    "weight": [torch.zeros(8, 9), torch.zeros(8), torch.zeros(8, 8, dtype=torch.int64), [1]],
    "common": [torch.zeros(7, 2), torch.zeros(8, 0), torch.zeros(8), None],
    "other_common": [torch.zeros(6, 3), [], [torch.zeros(6, 2), torch.zeros(6, 4)], [None]],
    "specific_a": [torch.zeros(7, 2), torch.zeros(8, 0), None],
    "specific_b": [torch.zeros(3, 8), torch.zeros(2, 7), None],
    "common_magnitude": [torch.zeros(7), torch.zeros(1, 8), None],
    "specific_magnitude": [torch.zeros(9), None],
    "alpha": [float("nan"), float("inf"), "0.1"],
    "backend": ["cuda", ""],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in WRONG for value in WRONG[name]])
def test_effective_weight_names_the_argument(name, value):
    with pytest.raises((ValueError, TypeError), match=rf"^{name}.*: got .*expected"):
        mora_kernels.effective_weight(**arguments(**{name: value}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", torch.zeros(3, 7)),
        ("x", torch.zeros(())),
        ("x", torch.zeros(3, 8, dtype=torch.int32)),
        ("x", torch.zeros(3, 8, dtype=torch.float64)),
        ("x", torch.zeros(3, 8, device="meta")),
        ("x", "image"),
        ("bias", torch.zeros(7)),
        ("dropout_p", 1.0),
        ("dropout_p", -0.1),
    ],
)
def test_mora_linear_names_the_argument(name, value):
    inputs = {"x": torch.zeros(3, 8), "bias": None, **arguments()}
    with pytest.raises((ValueError, TypeError), match=rf"^{name}.*: got .*expected"):
        mora_kernels.mora_linear(**{**inputs, name: value})


@pytest.mark.parametrize("factor", [torch.zeros(3), torch.zeros(3, 2, dtype=torch.int32), 1.0])
def test_gram_names_the_argument(factor):
    with pytest.raises((ValueError, TypeError), match="^factor: got"):
        mora_kernels.gram(factor)
