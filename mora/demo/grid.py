"""`python -m mora.demo.grid`: the search on the validation part behind `settings.CHOSEN`; the test part is not read.

Every adapted method tries the same number of pairs (learning rate of the adapters, scale of the update), with a seed of
its own that the demo never uses and the demo's default recipe otherwise.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch

from mora.checkpoint.files import write_bytes
from mora.demo.prefixes import Inputs, load_inputs
from mora.demo.report import markdown_table
from mora.demo.run import frozen_blocks, progress_bar
from mora.demo.settings import LABELS, METHODS, MORA_VARIANTS, Choice, Settings
from mora.demo.workers import Job, Progress, train_all

SEEDS = (100,)
LEARNING_RATES = (3e-3, 1e-2)
# alpha of equation (1): the three published values. lora_alpha / rank: around the usual 1 to 2.
MORA_SCALES, LORA_SCALES = (0.001, 0.01, 0.1), (1.0, 2.0, 4.0)


class Trial(NamedTuple):
    """One cell of the grid: best validation accuracy of an epoch, mean over the grid's seeds."""

    method: str
    choice: Choice
    validation: float


def trials(methods: tuple[str, ...]) -> list[tuple[str, Choice]]:
    """Every pair to try, by method."""
    return [
        (method, Choice(rate, scale))
        for method in methods
        for rate in LEARNING_RATES
        for scale in (MORA_SCALES if method in MORA_VARIANTS else LORA_SCALES)
    ]


def search(settings: Settings, methods: tuple[str, ...]) -> list[Trial]:
    """Train every cell and return it with its validation accuracy."""
    from rich.console import Console
    from rich.progress import TextColumn

    from mora import tiny

    console = Console()
    model, preprocess, tokenizer = tiny.load()
    inputs, classes = load_inputs(tokenizer, settings.limit)
    held_out = inputs["validation"]  # one row of it stands for the test part, which stays out of reach
    inputs["test"] = Inputs(held_out.images[:1], held_out.tokens[:1], held_out.labels[:1])
    prefixes = frozen_blocks(console, model, preprocess, inputs, classes, settings)
    cells = trials(methods)
    jobs = [
        Job(Settings(epochs=settings.epochs, limit=settings.limit, choices={method: choice}), method, seed)
        for method, choice in cells
        for seed in SEEDS
    ]
    with progress_bar(console, TextColumn("{task.fields[last]}")) as bar:
        task = bar.add_task("grid", total=len(jobs) * settings.epochs, last="")

        def advance(message: Progress) -> None:
            job = jobs[message.job]
            bar.update(task, advance=1, last=f"{job.method} {job.settings.choices[job.method]}")

        runs = train_all(model, prefixes, jobs, settings.jobs, advance)
    best = torch.tensor([run.best for run in runs]).view(len(cells), len(SEEDS)).mean(dim=1)
    return [Trial(method, choice, float(value)) for (method, choice), value in zip(cells, best, strict=True)]


def table(found: list[Trial]) -> str:
    """The grid in Markdown, the best cell of every method in bold."""
    rows = []
    for trial in found:
        best = max(other.validation for other in found if other.method == trial.method)
        cell = f"{100 * trial.validation:.1f}"
        rows.append(
            [
                LABELS[trial.method],
                f"{trial.choice.learning_rate:g}",
                f"{trial.choice.scale:g}",
                f"**{cell}**" if trial.validation == best else cell,
            ]
        )
    return markdown_table(["method", "learning rate", "scale", "validation accuracy, %"], rows)


def main() -> None:
    """Run the grid, print it and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("grid.md"))
    parser.add_argument("--epochs", type=int, default=Settings().epochs)
    parser.add_argument("--jobs", type=int, default=Settings().jobs)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--methods", nargs="+", default=[method for method in METHODS if method != "frozen"])
    given = parser.parse_args()
    settings = Settings(epochs=given.epochs, jobs=given.jobs, limit=given.limit)
    text = table(search(settings, tuple(given.methods)))
    print(text)
    write_bytes(given.out, (text + "\n").encode())


if __name__ == "__main__":
    main()
