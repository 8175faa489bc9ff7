"""What is searched: fields of the training configuration, each with a list of values or a range of numbers."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mora.config import MoraConfig
from mora.fields.per_tower import as_lists
from mora.system.checks import is_number, is_whole
from mora.system.messages import shown
from mora.training.config import FREE_ON_RESUME, TrainConfig

# Settings that are scored on other rows cannot be compared.
ROWS = (
    "data", "tables", "patches", "word_drop", "data_name", "metric", "split_seed", "extra_columns", "limit",
    "on_broken",
)  # fmt: skip
PLACES = ({*FREE_ON_RESUME} - {*ROWS, "pretrained"}) | {"cache", "cache_dtype", "savings"}
OWN = {
    "seed": "seeds: every setting is tried with each of them",
    "mora": "its fields by their own names (rank, alpha ...)",
    "variant": "method='mora-no-gram', 'mora-fixed-gram' or 'mora-no-specific'",
    "preset": "one: fields that come on top of it can be searched",
}


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones where both are ints.

    Attributes:
        low, high: the ends.
        log: whether they are drawn evenly on a logarithmic scale; needs a low end above 0.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        finite = all(is_number(end) and math.isfinite(end) for end in (self.low, self.high))
        if not finite or not self.low < self.high:
            raise ValueError(f"range: got {shown(self.low)} to {shown(self.high)}, expected two numbers that rise")
        if self.log and self.low <= 0:
            raise ValueError(f"range: got {self.low:g} as the low end of a logarithmic one, expected more than 0")

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return is_whole(self.low) and is_whole(self.high)

    def draw(self, generator: random.Random) -> float:
        """A number of it."""
        if self.whole and not self.log:
            return generator.randint(int(self.low), int(self.high))
        if self.whole:
            whole = round(math.exp(generator.uniform(math.log(self.low - 0.5), math.log(self.high + 0.5))))
            return min(max(whole, int(self.low)), int(self.high))
        if self.log:
            found = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
            return min(max(found, self.low), self.high)
        return generator.uniform(self.low, self.high)


def check_field(name: str, values: Any) -> tuple[Any, ...] | Range:
    """What is searched of one field, as it is kept; ValueError for a field that cannot be searched."""
    known = ({one.name for one in fields(TrainConfig)} | {one.name for one in fields(MoraConfig)}) - {*OWN}
    if name in OWN:
        raise ValueError(f"{name}: got several values, expected {OWN[name]}")
    if name not in known:
        raise ValueError(
            f"{name}: got an unknown field, expected some of {', '.join(sorted(known - {*ROWS, *PLACES}))}"
        )
    if name in ROWS:
        raise ValueError(
            f"{name}: got several values, expected one: it decides what validation measures, and settings could not "
            "be compared; sweep once for each"
        )
    if name in PLACES:
        raise ValueError(f"{name}: got several values, expected one: it says where and how to run, not what to train")
    if isinstance(values, Range):
        return values
    if not isinstance(values, (list, tuple)) or not values:
        raise ValueError(f"{name}: got {shown(values)}, expected a list of values, or a Range")
    found = [as_lists(value) for value in values]
    if twice := next((value for place, value in enumerate(found) if value in found[:place]), None):
        raise ValueError(f"{name}: got {shown(twice)} twice, expected each value once")
    return tuple(values)


def config_of(base: TrainConfig, values: Mapping[str, Any], seed: int, folder: Path) -> TrainConfig:
    """The configuration of one cell: `base` with the values of a setting, a seed and a folder of its own."""
    given = {one.name: getattr(base, one.name) for one in fields(TrainConfig)}
    return TrainConfig.make(**{**given, **values, "seed": seed, "out": str(folder)})


def as_json(values: tuple[Any, ...] | Range) -> Any:
    """What is searched of one field, as JSON types."""
    if isinstance(values, Range):
        return {"low": values.low, "high": values.high, "log": values.log}
    return [as_lists(value) for value in values]


def word(value: Any) -> str:
    """A value as it is typed: 0.01, "q,v", "image=8 text=4"."""
    if isinstance(value, Mapping):
        return " ".join(f"{name}={word(one)}" for name, one in value.items())
    if isinstance(value, (list, tuple)):
        return ",".join(map(word, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else str(value)


def words(values: Mapping[str, Any]) -> str:
    """A setting in words: "lr 0.01, rank 8"."""
    return ", ".join(f"{name} {word(value)}" for name, value in values.items())
