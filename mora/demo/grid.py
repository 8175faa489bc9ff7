"""`python -m mora.demo.grid`: the search on the validation part behind the demo's defaults; the test part is not read.

First the head's learning rate, for the frozen CLIP; then, for every adapted method, the same number of pairs (learning
rate of the adapters, scale of the update). Seeds are such as the demo never uses; the rest is its default recipe.
"""

from __future__ import annotations

import argparse
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from mora.demo.runs import ROWS
from mora.demo.settings import METHODS, Settings
from mora.runs.methods import MORA_VARIANTS
from mora.sweeping.sweep import Sweep
from mora.system.files import write_json
from mora.system.machine import versions

HEAD_SEEDS, SEEDS = (100, 101, 102), (100,)
HEAD_LEARNING_RATES = (1e-3, 3e-3, 1e-2)
# MoRA wants about ten times the learning rate of LoRA: each method has four, half of them the other's.
LORA_RATES, MORA_RATES = (1e-3, 3e-3, 1e-2, 3e-2), (3e-3, 1e-2, 3e-2, 1e-1)
# alpha of equation (1): the three published values. lora_alpha / rank: around the usual 1 to 2.
MORA_SCALES, LORA_SCALES = (0.001, 0.01, 0.1), (1.0, 2.0, 4.0)


def plan_of(method: str, given: Settings, place: Path) -> Sweep:
    """What is tried with one method, in `place`: three settings for "frozen", twelve for each other one."""
    base = given.config(method, 0, place / method, place / ROWS)
    if method == "frozen":
        return Sweep(base, {"head_lr": HEAD_LEARNING_RATES}, HEAD_SEEDS)
    ours = method in MORA_VARIANTS
    scales = {"alpha": MORA_SCALES} if ours else {"lora_scale": LORA_SCALES}
    return Sweep(base, {"lr": MORA_RATES if ours else LORA_RATES, **scales}, SEEDS)


def search(methods: tuple[str, ...], given: Settings) -> list[dict[str, Any]]:
    """Per setting: method, learning rate, scale, and the mean over its seeds of the best validation accuracy, in %."""
    results = []
    with tempfile.TemporaryDirectory(prefix="mora-grid-") as place:
        for method in methods:
            outcome = plan_of(method, given, Path(place)).run(given.jobs, test=False)
            for setting in outcome.settings:
                rate, scale = [*setting.values.values(), 0.0][:2]
                accuracy = None if setting.spread is None else round(100 * setting.spread.mean, 1)
                results.append({"method": method, "learning_rate": rate, "scale": scale, "accuracy": accuracy})
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
    settings = Settings(epochs=given.epochs, limit=given.limit, jobs=given.jobs)
    results = search(tuple(given.methods), settings)
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
