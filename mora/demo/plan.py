"""The plan of the demo's study, `plan.json`, and what its search chose, `chosen.json`: older than the test's numbers.

The plan fixes tasks, recipe, cells and seeds of the search, seeds of the test, and how its numbers are read. The search
sees the validation part only; `chosen.json` holds its winners, and the demo trains with them.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources
from typing import Any, NamedTuple


class Choice(NamedTuple):
    """What differs between methods: the adapters' learning rate, and the scale of their update (0 where it has none).

    `scale` is `lora_alpha / rank` for LoRA and DoRA, `alpha` of equation (1) for MoRA.
    """

    learning_rate: float
    scale: float


@lru_cache(maxsize=1)
def plan() -> dict[str, Any]:
    """The plan as JSON types."""
    return _read("plan.json")


@lru_cache(maxsize=1)
def chosen() -> dict[str, Any]:
    """By task: "head", the learning rate of the head, and a `Choice` for every method that was searched."""
    return {
        task: {"head": found["head"], **{name: Choice(*pair) for name, pair in found.items() if name != "head"}}
        for task, found in _read("chosen.json").items()
    }


def _read(name: str) -> dict[str, Any]:
    return json.loads((resources.files("mora.demo") / name).read_text(encoding="utf-8"))


def cells_of(method: str) -> dict[str, list[float]]:
    """What the search tries with a method, by field of `mora train`; every combination is a cell."""
    found: dict[str, list[float]] = plan()["search"]["cells"][method]
    return found
