"""`benchmarks/levels/inference.py`, a test per case and provider."""

import pytest

from benchmarks.conftest import CLOCK

LEVEL = "inference"


@pytest.mark.benchmark(timer=CLOCK, disable_gc=True)
def test_inference(cell, replay):
    replay(cell)
