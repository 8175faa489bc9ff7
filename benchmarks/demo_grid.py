"""The demo's search on the validation part, from its committed results: `benchmarks/results/demo_grid.json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.rows import RESULTS
from mora.demo.settings import LABELS

PATH = RESULTS / "demo_grid.json"


def results() -> list[dict[str, Any]]:
    """One entry per setting: method, learning_rate, scale, and the best validation accuracy in %."""
    return json.loads(PATH.read_text(encoding="utf-8"))["results"]


def head(markdown: Callable[..., str]) -> str:
    """The head's learning rate, for the frozen CLIP."""
    found = [entry for entry in results() if entry["method"] == "frozen"]
    best = max(entry["accuracy"] for entry in found)
    lines = [[f"{entry['learning_rate']:g}", cell(entry["accuracy"], best)] for entry in found]
    return markdown(["learning rate of the head", "validation accuracy, %"], lines)


def adapters(markdown: Callable[..., str], methods: Sequence[str], scale: str) -> str:
    """Learning rate and scale, a line per method."""
    lines, columns = [], []
    for method in methods:
        found = [entry for entry in results() if entry["method"] == method]
        best = max(entry["accuracy"] for entry in found)
        columns = [f"{entry['learning_rate']:g}, {entry['scale']:g}" for entry in found]
        lines.append([LABELS[method], *(cell(entry["accuracy"], best) for entry in found)])
    return markdown([f"learning rate, {scale}", *columns], lines)


def cell(accuracy: float, best: float) -> str:
    """An accuracy, in bold where it is the best."""
    return f"**{accuracy:.1f}**" if accuracy == best else f"{accuracy:.1f}"
