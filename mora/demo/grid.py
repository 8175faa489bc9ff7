"""`python -m mora.demo.grid`: the search on the validation part behind the demo's defaults; the test part is not read.

First the head's learning rate, for the frozen CLIP; then, for every adapted method, the same number of pairs (learning
rate of the adapters, scale of the update). Seeds are such as the demo never uses; the rest is its default recipe.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from mora.demo.run import with_bar
from mora.demo.runs import Job
from mora.demo.settings import CHOSEN, METHODS, Choice, Settings
from mora.runs.methods import MORA_VARIANTS
from mora.system.files import write_json
from mora.system.machine import versions

HEAD_SEEDS, SEEDS = (100, 101, 102), (100,)
HEAD_LEARNING_RATES = (1e-3, 3e-3, 1e-2)
# MoRA wants about ten times the learning rate of LoRA: each method has four, half of them the other's.
LORA_RATES, MORA_RATES = (1e-3, 3e-3, 1e-2, 3e-2), (3e-3, 1e-2, 3e-2, 1e-1)
# alpha of equation (1): the three published values. lora_alpha / rank: around the usual 1 to 2.
MORA_SCALES, LORA_SCALES = (0.001, 0.01, 0.1), (1.0, 2.0, 4.0)


class Cell(NamedTuple):
    """One setting to try, with the seeds that try it."""

    method: str
    settings: Settings
    seeds: tuple[int, ...]


def cells_of(methods: tuple[str, ...], given: Settings) -> list[Cell]:
    """Every cell: the head's for "frozen", twelve for each other method."""
    cells = []
    for method in methods:
        if method == "frozen":
            settings = [replace(given, head_learning_rate=rate) for rate in HEAD_LEARNING_RATES]
            cells += [Cell(method, one, HEAD_SEEDS) for one in settings]
            continue
        ours = method in MORA_VARIANTS
        for rate in MORA_RATES if ours else LORA_RATES:
            for scale in MORA_SCALES if ours else LORA_SCALES:
                choices = {**CHOSEN, method: Choice(rate, scale)}
                cells.append(Cell(method, replace(given, choices=choices), SEEDS))
    return cells


def search(cells: list[Cell], jobs_at_once: int) -> list[dict[str, Any]]:
    """Per cell: method, learning rate, scale, and the mean over its seeds of the best validation accuracy, in %."""
    from rich.console import Console

    jobs = [Job(cell.settings, cell.method, seed, tested=False) for cell in cells for seed in cell.seeds]
    with tempfile.TemporaryDirectory(prefix="mora-grid-") as place:
        runs = iter(with_bar(Console(), jobs, Path(place), jobs_at_once))
    results = []
    for cell in cells:
        accuracy = sum(next(runs).best for _ in cell.seeds) / len(cell.seeds)
        rate, scale = cell.settings.choice(cell.method)
        rate = rate or cell.settings.head_learning_rate
        results.append(
            {"method": cell.method, "learning_rate": rate, "scale": scale, "accuracy": round(100 * accuracy, 1)}
        )
    return results


def main() -> None:
    """Run the grid and write what it found: the rows of the tables in docs/demo.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo_grid.json"))
    parser.add_argument("--epochs", type=int, default=Settings().epochs)
    parser.add_argument("--jobs", type=int, default=Settings().jobs)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    given = parser.parse_args()
    results = search(cells_of(tuple(given.methods), Settings(epochs=given.epochs, limit=given.limit)), given.jobs)
    found = {
        "command": "python -m mora.demo.grid",
        "versions": versions(),
        "date": date.today().isoformat(),
        "accuracy": "best validation epoch, %, mean over seeds",
        "results": results,
    }
    write_json(given.out, found)
    print(f"{len(results)} cells: {given.out}")


if __name__ == "__main__":
    main()
