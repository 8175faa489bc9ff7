"""`benchmarks/levels/switch.py`, a test per case and provider."""

import pytest

from benchmarks.conftest import CLOCK

LEVEL = "switch"


@pytest.mark.benchmark(timer=CLOCK, disable_gc=True)
def test_switch(cell, replay):
    replay(cell)
