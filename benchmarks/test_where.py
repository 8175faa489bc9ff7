"""The parts of an epoch make the whole of it, and rows that are kept need a fraction of the products."""

import pytest

from benchmarks import trained
from benchmarks.where import PARTS, Clock

SHAPE = {"model": "tiny", "rows": 8, "batch": 8, "missing": 0.7, "dropout": 0.1}


def test_the_parts_of_an_epoch_make_the_whole():
    off, on = (Clock(name, SHAPE) for name in (trained.OFF, trained.ON))
    for clock in (off, on):
        clock.find_out()
        clock.round()
        found = clock.medians()
        assert sum(found[part] for part in PARTS[:-1]) == pytest.approx(found["all"], rel=1e-6)
        assert all(found[part] > 0 for part in ("batches", "forward", "backward", "optimizer", "validation"))
    training, validation = zip(off.products(), on.products(), strict=True)
    assert training[0] > 2 * training[1]
    assert validation[0] > 4 * validation[1]
