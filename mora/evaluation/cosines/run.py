"""One comparison from beginning to end: models, data, before and after, then the files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mora.data.table_files import load_table
from mora.data.tables import Missing
from mora.evaluation.cosines import report
from mora.evaluation.cosines.models import ADAPTED, AS_IS, PRETRAINED, before, open_model, open_rows
from mora.evaluation.cosines.retrieval import evaluate_retrieval
from mora.evaluation.cosines.zero_shot import TEMPLATES, evaluate_zero_shot
from mora.evaluation.report import print_table
from mora.evaluation.run import Source, about, bar, described, labels_of, make_console
from mora.runs.run import LoadedRun
from mora.savings import Savings
from mora.system.folders import remove_leftovers
from mora.system.lock import FolderLock
from mora.system.machine import device_of
from mora.system.messages import printable
from mora.system.workers import check_workers, lost_workers

RETRIEVAL, ZERO_SHOT = "retrieval", "zero-shot"


def compare(
    folders: Sequence[Path],
    out: Path,
    kind: str,
    source: Source = Source(),  # noqa: B008 # immutable
    conditions: Sequence[Missing] = (),
    seeds: Sequence[int] = (0,),
    tables: Sequence[Path] = (),
    names: Sequence[str] | None = None,
    templates: Sequence[str] = TEMPLATES,
    device: str = "auto",
    batch: int = 64,
    workers: int = 0,
    savings: str = "all",
    command: str = "",
    console: Any = None,
) -> report.Comparison:
    """Score every model before and after its training, print a table, and write `report.FILES` into `out`.

    Args:
        folders: run folders of `mora train`, or merged folders, which have no before.
        out: where to write.
        kind: "retrieval" or "zero-shot".
        source: the data; without a name, what the first run was trained on.
        conditions, seeds, tables: of retrieval: what is taken away, besides nothing.
        names, templates: of zero-shot classification.
        device, batch, workers, savings, command, console: as in `mora.evaluation.run.evaluate_runs`.

    Raises ValueError, OSError or ImportError for what the user can mend; nothing was written then.
    """
    console = console or make_console()
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: got {out}, which is a file, expected a folder")
    check_workers(workers)
    chosen, where = Savings.parse(savings), device_of(device)
    if kind == ZERO_SHOT and (conditions or tables):
        raise ValueError("missing: got it with --zero-shot, expected none: it is scored by each modality alone anyway")
    with FolderLock.beside(out, lambda line: console.print(line, highlight=False, markup=False)), lost_workers():
        for name in report.FILES:
            remove_leftovers(out, name)
        runs = [open_model(folder, device=where) for folder in folders]
        labels = labels_of(runs)
        if source.data is None and runs[0].data:
            source = source._replace(data=str(runs[0].data["source"]))
        results: list[Any] = []
        for label, run in zip(labels, runs, strict=True):
            dataset, advance_of = open_rows(source, run), partial(bar, console, f"embedding for {label}")
            given: dict[str, Any] = {"dataset": dataset, "label": label, "batch": batch, "workers": workers}
            if kind == RETRIEVAL:
                read = {str(path): load_table(path, dataset) for path in tables}
                given |= {"conditions": [Missing(), *conditions], "seeds": seeds, "tables": read}
                score: Any = evaluate_retrieval
            else:
                score, given = evaluate_zero_shot, {**given, "names": names, "templates": templates}
            results += before_and_after(run, chosen, partial(score, **given), advance_of, len(dataset))
        found = report.Comparison(
            kind=kind,
            results=results,
            models=[about(label, run) for label, run in zip(labels, runs, strict=True)],
            data=described(dataset, source),
            command=command,
            templates=tuple(templates) if kind == ZERO_SHOT else (),
        )
        written = report.write(found, out)
    table = report.table_of(found)
    console.print(printable(f"{table.title}; {found.data['name']}, {found.data['split']} split"), highlight=False)
    print_table(console, report.narrow(table))
    console.print(f"Written: {printable(', '.join(map(str, written)))}", highlight=False, markup=False, soft_wrap=True)
    return found


def before_and_after(run: LoadedRun, savings: Savings, score: Any, bar_of: Any, rows: int) -> list[Any]:
    """What `score` gives of a run before its training and after it; of a model that nothing trained, once."""
    results: list[Any] = []
    with bar_of(rows * (2 if run.data else 1)) as advance:
        if run.data:
            with before(run) as untrained:
                untrained.model.save(savings)
                results += score(untrained, progress=advance, state=PRETRAINED)
        run.model.save(savings)
        results += score(run, progress=advance, state=ADAPTED if run.data else AS_IS)
    return results
