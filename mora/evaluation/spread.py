"""Mean and spread of a few values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """Mean and sample standard deviation over seeds (0 with one seed), shares of 1."""

    mean: float
    deviation: float

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} ± {100 * self.deviation:.1f}"


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation of a few values."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return Spread(mean, 0.0)
    return Spread(mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1)))
