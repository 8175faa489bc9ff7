"""`benchmarks/levels/training_step.py`, a test per case and provider."""

import pytest

from benchmarks.conftest import CLOCK

LEVEL = "training_step"


@pytest.mark.benchmark(timer=CLOCK, disable_gc=True)
def test_training_step(cell, replay):
    replay(cell)
