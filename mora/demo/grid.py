"""`python -m mora.demo.grid`: the search on the validation part behind the demo's defaults; the test part is not read.

First the head's learning rate, for the frozen CLIP; then, for every adapted method, the same number of pairs (learning
rate of the adapters, scale of the update). Seeds are such as the demo never uses; the rest is its default recipe.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from mora.demo.prefixes import Inputs, load_inputs
from mora.demo.report import markdown_table
from mora.demo.run import frozen_blocks, progress_bar
from mora.demo.settings import CHOSEN, LABELS, METHODS, Choice, Settings
from mora.demo.workers import Job, Progress, train_all
from mora.runs.methods import MORA_VARIANTS
from mora.system.files import write_bytes

HEAD_SEEDS, SEEDS = (100, 101, 102), (100,)
HEAD_LEARNING_RATES = (1e-3, 3e-3, 1e-2)
LEARNING_RATES = (1e-3, 3e-3, 1e-2)
# alpha of equation (1): the three published values. lora_alpha / rank: around the usual 1 to 2.
MORA_SCALES, LORA_SCALES = (0.001, 0.01, 0.1), (1.0, 2.0, 4.0)


class Cell(NamedTuple):
    """One setting to try, with the seeds that try it."""

    method: str
    settings: Settings
    seeds: tuple[int, ...]


def cells_of(methods: tuple[str, ...], epochs: int) -> list[Cell]:
    """Every cell: the head's for "frozen", nine for each other method."""
    cells = []
    for method in methods:
        if method == "frozen":
            cells += [
                Cell(method, Settings(epochs=epochs, head_learning_rate=rate), HEAD_SEEDS)
                for rate in HEAD_LEARNING_RATES
            ]
            continue
        for rate in LEARNING_RATES:
            for scale in MORA_SCALES if method in MORA_VARIANTS else LORA_SCALES:
                choices = {**CHOSEN, method: Choice(rate, scale)}
                cells.append(Cell(method, Settings(epochs=epochs, choices=choices), SEEDS))
    return cells


def search(cells: list[Cell], jobs_at_once: int, limit: int | None) -> list[float]:
    """Mean over its seeds of every cell's best validation accuracy."""
    from rich.console import Console
    from rich.progress import TextColumn

    from mora import tiny

    console = Console()
    model, preprocess, tokenizer = tiny.load()
    inputs, classes = load_inputs(tokenizer, limit)
    held_out = inputs["validation"]  # one row of it stands for the test part, which stays out of reach
    inputs["test"] = Inputs(held_out.images[:1], held_out.tokens[:1], held_out.labels[:1])
    prefixes = frozen_blocks(console, model, preprocess, inputs, classes, cells[0].settings)
    jobs = [Job(cell.settings, cell.method, seed) for cell in cells for seed in cell.seeds]
    with progress_bar(console, TextColumn("{task.fields[last]}")) as bar:
        task = bar.add_task("grid", total=sum(job.settings.epochs for job in jobs), last="")

        def advance(message: Progress) -> None:
            job = jobs[message.job]
            choice = job.settings.choice(job.method)
            bar.update(task, advance=1, last=f"{LABELS[job.method]} {choice.learning_rate:g} {choice.scale:g}")

        runs = iter(train_all(model, prefixes, jobs, jobs_at_once, advance))
    return [sum(next(runs).best for _ in cell.seeds) / len(cell.seeds) for cell in cells]


def tables(cells: list[Cell], found: list[float]) -> str:
    """Two Markdown tables, the head's and the adapters', the best cell of every method in bold."""
    head, adapters = [], []
    for cell, value in zip(cells, found, strict=True):
        best = max(other for other, owner in zip(found, cells, strict=True) if owner.method == cell.method)
        shown = f"**{100 * value:.1f}**" if value == best else f"{100 * value:.1f}"
        if cell.method == "frozen":
            head.append([f"{cell.settings.head_learning_rate:g}", shown])
        else:
            choice = cell.settings.choice(cell.method)
            adapters.append([LABELS[cell.method], f"{choice.learning_rate:g}", f"{choice.scale:g}", shown])
    parts = []
    if head:
        parts.append(markdown_table(["learning rate of the head", "validation accuracy, %"], head))
    if adapters:
        parts.append(markdown_table(["method", "learning rate", "scale", "validation accuracy, %"], adapters))
    return "\n\n".join(parts)


def main() -> None:
    """Run the grid, print it and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("grid.md"))
    parser.add_argument("--epochs", type=int, default=Settings().epochs)
    parser.add_argument("--jobs", type=int, default=Settings().jobs)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    given = parser.parse_args()
    cells = cells_of(tuple(given.methods), given.epochs)
    text = tables(cells, search(cells, given.jobs, given.limit))
    print(text)
    write_bytes(given.out, (text + "\n").encode())


if __name__ == "__main__":
    main()
