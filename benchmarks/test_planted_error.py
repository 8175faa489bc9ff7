"""A wrong kernel is not timed: with alpha 1 % off, every level refuses and no row appears."""

import importlib

import pytest

import mora_kernels.torch.group
import mora_kernels.torch.weight
from benchmarks import harness
from benchmarks.conftest import LEVELS
from benchmarks.sizes import Scale

SMOKE = Scale("cpu", smoke=True)


def off(original):
    """`original` with an alpha that is 1 % too large in its first argument, the factors."""
    return lambda factors, *rest: original([one._replace(alpha=1.01 * one.alpha) for one in factors], *rest)


@pytest.fixture
def wrong_alpha(monkeypatch):
    for module in (mora_kernels.torch.weight, mora_kernels.torch.group):
        for name in ("thin_factors", "gradients"):
            monkeypatch.setattr(module, name, off(getattr(module, name)))


@pytest.fixture
def nothing_timed(monkeypatch):
    def interleave(*arguments, **options):
        raise AssertionError("timed in spite of the error")

    monkeypatch.setattr(harness, "interleave", interleave)


# "switch" times turns: its parity is that of each adapter with itself alone.
@pytest.mark.parametrize("name", [name for name in LEVELS if name != "switch"])
@pytest.mark.usefixtures("wrong_alpha", "nothing_timed")
def test_every_level_refuses(name):
    level = importlib.import_module(f"benchmarks.levels.{name}")
    shape = next(shape for shape in level.shapes(SMOKE) if shape.get("operation") != "gram")  # which has no alpha
    with pytest.raises(AssertionError, match=r"provider '(torch|patched|triton)[^']*': .*relative L2"):
        harness.measure(level, shape, SMOKE)
