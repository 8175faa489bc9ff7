"""`benchmarks/levels/projection.py`, a test per case and provider."""

import pytest

from benchmarks.conftest import CLOCK

LEVEL = "projection"


@pytest.mark.benchmark(timer=CLOCK, disable_gc=True)
def test_projection(cell, replay):
    replay(cell)
