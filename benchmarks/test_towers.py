"""`benchmarks/levels/towers.py`, a test per case and provider."""

import pytest

from benchmarks.conftest import CLOCK

LEVEL = "towers"


@pytest.mark.benchmark(timer=CLOCK, disable_gc=True)
def test_towers(cell, replay):
    replay(cell)
