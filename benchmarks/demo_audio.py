"""The demo of three modalities from its committed rows: `benchmarks/results/demo_audio.json`, its `audio.json`."""

from __future__ import annotations

from functools import cache
from typing import Any

from benchmarks.plots import FOLDER
from benchmarks.rows import RESULTS
from mora.demo import subsets
from mora.system.files import read_json

ROWS, PLOT = RESULTS / "demo_audio.json", FOLDER / "demo_audio.png"


@cache
def rows() -> dict[str, Any]:
    """What `mora demo --audio` wrote."""
    return read_json(ROWS)


def results() -> str:
    """Accuracy by what is there."""
    return subsets.table(rows()).markdown()


def said() -> str:
    """MoRA beside the others."""
    return "\n".join(f"- {line}" for line in subsets.said(rows()))


def heard() -> str:
    """What the tower finds."""
    return subsets.heard(rows()).markdown()


if __name__ == "__main__":
    PLOT.write_bytes(subsets.draw(rows()))
    print(results(), said(), heard(), sep="\n\n")
