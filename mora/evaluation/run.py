"""One evaluation from beginning to end: runs, data, every cell, then the files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from mora.data.corruption import Corruption
from mora.data.dataset import Dataset
from mora.data.open import open_dataset
from mora.data.table_files import load_table
from mora.data.tables import Missing
from mora.data.views import Corrupted
from mora.evaluation import report
from mora.evaluation.grid import SEEDS, Result, cells, grid_of
from mora.heads import NONE
from mora.runs.run import LoadedRun, load_run
from mora.savings import Savings
from mora.system.folders import remove_leftovers
from mora.system.lock import FolderLock
from mora.system.machine import device_of, need
from mora.system.messages import printable
from mora.system.workers import check_workers, lost_workers


class Source(NamedTuple):
    """What is scored.

    Attributes:
        data: source, as `open_dataset` takes it; None is what the first run was trained on.
        split: "train", "validation" or "test"; "all" takes every row of a manifest.
        on_broken: "raise" or "skip" images that cannot be read.
        name: "mmimdb", "food101" or "hateful_memes", where a folder in the official layout does not tell.
        extra_columns: ignore columns of a manifest that have no meaning here.
        corruption: how images and texts are damaged; None leaves them whole.
    """

    data: str | None = None
    split: str = "test"
    on_broken: str = "raise"
    name: str | None = None
    extra_columns: bool = False
    corruption: Corruption | None = None

    def open(self, run: LoadedRun) -> Dataset:
        """The split as a run sees it: its classes in their order, rows without splits divided as for training."""
        given = run.data_options
        options = given if self.is_of(run) else {"seed": given.get("seed", 0)}
        return self.rows(run, classes=run.classes, multi_label=run.multi_label, **options)

    def rows(self, run: LoadedRun, **options: Any) -> Dataset:
        """The split, opened with `options` of `open_dataset` and what is said here, at the size a run's images have."""
        if self.name is not None:
            options["name"] = self.name
        if self.extra_columns:
            options["extra_columns"] = True
        size = min(run.backbone.image_size)
        dataset = open_dataset(str(self.data), self.split, on_broken=self.on_broken, size=size, **options)
        return dataset if self.corruption is None else Corrupted(dataset, self.corruption)

    def is_of(self, run: LoadedRun) -> bool:
        """Whether this is what the run was trained on, however its path is spelled."""
        paths = [Path(str(given)) for given in (self.data, run.data["source"])]
        return paths[0] == paths[1] or (all(path.exists() for path in paths) and paths[0].samefile(paths[1]))


def evaluate_runs(
    folders: Sequence[Path],
    out: Path,
    conditions: Sequence[Missing],
    seeds: Sequence[int] = SEEDS,
    tables: Sequence[Path] = (),
    source: Source = Source(),  # noqa: B008 # immutable
    device: str = "auto",
    batch: int = 64,
    workers: int = 0,
    savings: str = "all",
    command: str = "",
    console: Any = None,
    grid: tuple[Sequence[str] | None, Sequence[float] | None] | None = None,
) -> report.Evaluation:
    """Score every run under every condition, print the tables, and write the four files of `report.FILES` into `out`.

    Args:
        folders: run folders of `mora train`, compared side by side.
        out: where to write.
        conditions: what is taken away; nothing is, first, in any case.
        seeds: of the missing tables that are drawn.
        tables: files of missing tables, each scored as well.
        source: the data.
        device: where the models run; "auto" is the GPU where there is one.
        batch: samples at a time.
        workers: processes that read and preprocess.
        savings: what is left out of the computation, as `mora.Savings.parse` reads it.
        command: the command line, for the files.
        console: a rich console; None makes one.
        grid: types and rates of conditions in addition, None in a place being what `grid_of` takes for the data.

    Raises ValueError, OSError or ImportError for what the user can mend; nothing was written then.
    """
    console = console or make_console()
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: got {out}, which is a file, expected a folder")
    check_workers(workers)
    chosen = Savings.parse(savings)
    with FolderLock.beside(out, lambda line: console.print(line, highlight=False, markup=False)), lost_workers():
        for name in report.FILES:
            remove_leftovers(out, name)
        runs = load_runs(folders, device)
        for run in runs:
            run.model.save(chosen)
        labels = labels_of(runs)
        source = source._replace(data=str(runs[0].data["source"]) if source.data is None else source.data)
        opened = [source.open(run) for run in runs]
        found = zip(labels, runs, opened, strict=True)
        changed = [label for label, run, data in found if has_changed(source, run, data)]
        refuse_other_rows(runs, opened)
        results: list[Result] = []
        for label, run, dataset in zip(labels, runs, opened, strict=True):
            wanted = [Missing(), *conditions, *(() if grid is None else grid_of(dataset.modalities, *grid))]
            read = {str(path): load_table(path, dataset) for path in tables}
            with bar(console, f"embedding for {label}", len(dataset)) as advance:
                results += cells(run, dataset, wanted, seeds, read, label, batch, workers, advance)
        evaluation = report.Evaluation(
            results=results,
            models=[about(label, run) for label, run in zip(labels, runs, strict=True)],
            data={**described(opened[0], source), "changed_since": changed},
            seeds=tuple(seeds),
            command=command,
        )
        written = report.write(evaluation, out)
    report.print_tables(console, evaluation)
    shown = printable(", ".join(map(str, written)))
    console.print(f"Written: {shown}", highlight=False, markup=False, soft_wrap=True)
    return evaluation


def make_console() -> Any:
    """A rich console; ImportError where rich is absent."""
    return need("rich.console", "printing tables").Console()


def load_runs(folders: Sequence[Path], device: str) -> list[LoadedRun]:
    """Every run, on its device; ValueError for none, one named twice, another task than the first's, no such device."""
    if not folders:
        raise ValueError("model: got no run, expected at least one folder of mora train")
    where = device_of(device)
    for position, folder in enumerate(folders):
        if folder.resolve() in {known.resolve() for known in folders[:position]}:
            raise ValueError(f"model: got {folder} twice, expected each run once")
    runs = [load_run(folder, where) for folder in folders]
    for run in runs:
        refuse_headless(run)
    for folder, run in zip(folders, runs, strict=True):
        if (run.classes, run.metric) != (runs[0].classes, runs[0].metric):
            raise ValueError(
                f"model: {folder} has {len(run.classes)} classes and {run.metric}, {folders[0]} has "
                f"{len(runs[0].classes)} and {runs[0].metric}, expected the same classes and metric to compare"
            )
    return runs


def refuse_headless(run: LoadedRun) -> None:
    """Raise ValueError for a run without a head: nothing in it knows classes."""
    if run.model.head_kind == NONE:
        raise ValueError(
            f"model: {run.folder} was trained on pairs (--objective contrastive) and has no classes, expected a "
            "classifier; mora evaluate --retrieval or --zero-shot and mora embed take it"
        )


def refuse_other_rows(runs: Sequence[LoadedRun], datasets: Sequence[Dataset]) -> None:
    """Raise ValueError when rows that have no splits of their own were divided in another way for one of the runs."""
    for run, dataset in zip(runs, datasets, strict=True):
        if dataset.fingerprint != datasets[0].fingerprint:
            raise ValueError(
                f"model: got {run.folder}, of which {dataset.split} has other rows than for {runs[0].folder} "
                "(--split-seed), expected runs that divide the data in the same way"
            )


def has_changed(source: Source, run: LoadedRun, dataset: Dataset) -> bool:
    """Whether the split has other rows than when the run was trained on this very source."""
    before = run.data.get("fingerprints", {}).get(dataset.split)
    return before not in (None, dataset.fingerprint) and source.is_of(run)


def labels_of(runs: Sequence[LoadedRun]) -> list[str]:
    """A short name per run: its method where that tells them apart, else its folder's name, else its path."""
    choices = (
        [run.method for run in runs],
        [run.folder.resolve().name for run in runs],
        [str(run.folder) for run in runs],
    )
    return next(names for names in choices if len(set(names)) == len(runs))


@contextmanager
def bar(console: Any, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar where somebody watches; gives what moves it."""
    from rich import progress

    columns = [
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
    ]
    columns += [progress.TimeElapsedColumn(), progress.TextColumn("left"), progress.TimeRemainingColumn()]
    with progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task(printable(title), total=total)
        yield lambda done: shown.advance(task, done)


def about(label: str, run: LoadedRun) -> dict[str, Any]:
    """What the report says about a model: where it comes from and how it was trained."""
    return {
        "label": label,
        "folder": str(run.folder),
        "method": run.method,
        "result": run.result,
        "config": run.config,
    }


def described(dataset: Dataset, source: Source) -> dict[str, Any]:
    """What the report says about the data."""
    missing = dataset.present().missing
    order = dict.fromkeys([*(name for name in ("text", "image") if name in missing), *missing])
    return {
        "source": source.data,
        "name": dataset.name,
        "split": dataset.split,
        "samples": len(dataset),
        "image_rows": dataset.rows,
        "classes": len(dataset.classes),
        "fingerprint": dataset.fingerprint,
        "corruption": None if source.corruption is None else asdict(source.corruption),
        "broken": list(dataset.broken),
        "natural": {f"{name}_missing": missing[name] for name in order},
    }
