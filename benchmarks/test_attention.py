"""`benchmarks/levels/attention.py`, a test per case and provider."""

import pytest

from benchmarks.conftest import CLOCK

LEVEL = "attention"


@pytest.mark.benchmark(timer=CLOCK, disable_gc=True)
def test_attention(cell, replay):
    replay(cell)
