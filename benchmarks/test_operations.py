"""`benchmarks/levels/operations.py`, a test per case and provider."""

import pytest

from benchmarks.conftest import CLOCK

LEVEL = "operations"


@pytest.mark.benchmark(timer=CLOCK, disable_gc=True)
def test_operations(cell, replay):
    replay(cell)
