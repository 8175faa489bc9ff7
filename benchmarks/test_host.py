"""`benchmarks/levels/host.py`, a test per case and provider."""

import pytest

from benchmarks.conftest import CLOCK

LEVEL = "host"


@pytest.mark.benchmark(timer=CLOCK, disable_gc=True)
def test_host(cell, replay):
    replay(cell)
