"""`benchmarks/levels/savings.py`, a test per case and provider."""

import pytest

from benchmarks.conftest import CLOCK

LEVEL = "savings"


@pytest.mark.benchmark(timer=CLOCK, disable_gc=True)
def test_savings(cell, replay):
    replay(cell)
