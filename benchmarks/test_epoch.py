"""`benchmarks/levels/epoch.py`, a test per case and provider."""

import pytest

from benchmarks.conftest import CLOCK

LEVEL = "epoch"


@pytest.mark.benchmark(timer=CLOCK, disable_gc=True)
def test_epoch(cell, replay):
    replay(cell)
