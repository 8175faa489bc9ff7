"""What an evaluation leaves behind: results.csv, results.json, report.md and plot.png, and a table in the terminal."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mora.data.missing import KINDS
from mora.evaluation import plot
from mora.evaluation.grid import NOTHING, Result
from mora.evaluation.tables import Summary, Table, by_pattern, everything, percent, tables
from mora.patterns import names_in
from mora.system.folders import write_together
from mora.system.machine import versions
from mora.system.markup import cell, code, plain
from mora.system.messages import printable

FILES = ("results.csv", "results.json", "report.md", "plot.png")
COLUMNS = (
    "model", "method", "data", "split", "missing", "rate", "both_ratio", "seed", "table", "rows", "complete",
    "text_missing", "image_missing", "metric", "value",
)  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """Everything the files are written from; nothing in it depends on when or how fast it ran.

    Attributes:
        results: every cell of every model.
        models: per model: label, folder, configuration and best validation epoch of its run.
        data: source, name, split, fingerprint, samples and natural absence.
        seeds: of the missing tables.
        command: the command line.
    """

    results: list[Result]
    models: list[dict[str, Any]]
    data: dict[str, Any]
    seeds: tuple[int, ...]
    command: str


def write(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write the files together and return their paths; where results.json is, all four are of one evaluation."""
    made: dict[str, Callable[[], bytes]] = {
        "plot.png": lambda: plot.draw(evaluation.results, f"{title(evaluation)}\n{spread_of(evaluation)}"),
        "results.csv": lambda: as_csv(evaluation).encode(),
        "report.md": lambda: markdown(evaluation).encode(),
        "results.json": lambda: (json.dumps(as_json(evaluation), indent=2) + "\n").encode(),
    }
    contents = {name: make() for name, make in made.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_together(folder, contents)
    return [folder / name for name in FILES]


def as_csv(evaluation: Evaluation) -> str:
    """A row per model, condition and seed; every figure in a column of its own, as a share of 1."""
    figures, patterns = Summary(evaluation.results).figures(), names_in(r.patterns for r in evaluation.results)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    further = list(evaluation.results[0].further) if evaluation.results else []
    apart = [f"value_{name.replace(' ', '_').replace(',', '')}" for name in patterns]
    writer.writerow([*COLUMNS, *(f"{name}_missing" for name in further), *figures, *apart, "lacks_sha256"])
    for r in evaluation.results:
        fixed = (
            cell(r.model), r.method, cell(r.data), r.split, r.kind, r.rate, r.both_ratio, r.seed,
            r.table and cell(r.table), r.rows, r.complete, r.text_missing, r.image_missing, r.metric, r.value,
        )  # fmt: skip
        own = [r.patterns.get(name, {}).get(r.metric) for name in patterns]
        lost = [r.further.get(name) for name in further]
        writer.writerow([*fixed, *lost, *(r.figures.get(name) for name in figures), *own, r.lacks_sha256])
    return text.getvalue()


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Everything, as JSON types."""
    summary = Summary(evaluation.results)
    means = [
        {"model": model, "missing": kind, "rate": rate, "seeds": len(cell)}
        | {name: value._asdict() for name in summary.figures() if (value := summary.at(model, kind, rate, name))}
        for (model, kind, rate), cell in summary.cells.items()
    ]
    return {
        "format": 1,
        "command": evaluation.command,
        "versions": versions(),
        "data": evaluation.data,
        "models": evaluation.models,
        "seeds": list(evaluation.seeds),
        "summary": means,
        "cells": [result.to_dict() for result in evaluation.results],
    }


def title(evaluation: Evaluation) -> str:
    """What was scored, in one line."""
    models = list(dict.fromkeys(result.model for result in evaluation.results))
    who = f"{models[0]} on " if len(models) == 1 else ""
    damaged = ", damaged in part" if evaluation.data.get("corruption") else ""
    data = evaluation.data
    return f"{who}{data['name']}, {data['split']} split, {data['samples']:,} samples{damaged}"


def spread_of(evaluation: Evaluation) -> str:
    """What the numbers of a table are, in words."""
    most = max(len(cell) for cell in Summary(evaluation.results).cells.values())
    return f"in %, mean ± standard deviation over {most} missing tables" if most > 1 else "in %"


def markdown(evaluation: Evaluation) -> str:
    """The whole report."""
    parts = [f"# {plain(title(evaluation))}", "![The headline figure by what is missing](plot.png)"]
    main = tables(evaluation.results)
    parts.append("\n\n".join(f"## {capital(table.title)}\n\n{table.markdown()}" for table in main))
    parts.append(reading(evaluation, any(table.best for table in main)))
    if (apart := by_pattern(evaluation.results)) is not None:
        parts.append(f"## {capital(apart.title)}\n\n{apart.markdown()}")
    parts.append(f"## Every figure\n\n{everything(evaluation.results).markdown()}")
    parts.append(f"## Models\n\n{models_table(evaluation).markdown()}")
    parts.append(provenance(evaluation))
    return "\n\n".join(parts) + "\n"


def reading(evaluation: Evaluation, marked: bool) -> str:
    """How to read the tables."""
    kinds = {result.kind for result in evaluation.results}
    lines = [
        f"Numbers are {spread_of(evaluation)}."
        + (" Bold is the highest mean of a column, within the spread or not." if marked else "")
    ]
    if any(result.further for result in evaluation.results):
        lines.append(
            'A rate counts what is MISSING: 100 % under "no text, no audio" means that rows have neither, so that the '
            "figure is that of the others alone. A row that would be left with nothing keeps what it has."
        )
    elif kinds & set(KINDS):
        lines.append(
            'A rate counts what is MISSING: 70 % under "no text" means that 70 % of the rows have an image and no '
            'text, and the others have both; under "half no text, half no image", that 35 % lack their text and 35 % '
            "their image. No row lacks both."
        )
    if "±" in spread_of(evaluation):
        lines.append(
            "The spread is over which rows lack what, for the same trained model; another training is another matter."
        )
    natural = evaluation.data["natural"]
    if any(natural.values()):
        counts = [f"{count:,} no {name.removesuffix('_missing')}" for name, count in natural.items()]
        told = f"{', '.join(counts[:-1])} and {counts[-1]}".replace(" no ", " samples have no ", 1)
        more = " and a row that lacks one already loses nothing more" if len(counts) == 2 else " and none loses all"
        lines.append(f"By nature {told}; rates are taken from all rows,{more}.")
    lines += [plain(line) for line in changed(evaluation)]
    return "\n".join(f"- {line}" for line in lines)


def changed(evaluation: Evaluation) -> list[str]:
    """A line where the data is no longer what a run was trained on."""
    since = evaluation.data.get("changed_since")
    if not since:
        return []
    return [
        f"{evaluation.data['source']} has changed since {', '.join(since)} was trained. If it has no splits of its "
        "own, rows of training may be among these, and the figures too high."
    ]


def models_table(evaluation: Evaluation) -> Table:
    """Where each model comes from."""
    headings = ["model", "method", "backbone", "trained on", "missing in training", "best epoch", "validation"]
    rows = []
    for model in evaluation.models:
        config, result = model["config"], model["result"]
        score = result.get("validation", {}).get(config["data"]["metric"])
        rows.append(
            [
                model["label"],
                model["method"],
                " ".join(filter(None, (config["backbone"]["name"], config["backbone"]["pretrained"]))),
                config["data"]["name"],
                percent(config.get("tables", {}).get("train", {}).get("missing", "none")),
                str(result.get("epoch", "")),
                "" if score is None else f"{100 * score:.2f}",
            ]
        )
    return Table("Models", headings, rows, set(), words=5)


def provenance(evaluation: Evaluation) -> str:
    """Where the numbers come from."""
    data = evaluation.data
    lines = [
        f"Command: {code(evaluation.command)}",
        f"Data: {code(str(data['source']))}, split {data['split']}, {data['samples']:,} samples over "
        f"{data['image_rows']:,} image rows, fingerprint `{data['fingerprint'][:16]}`",
        f"Versions: {', '.join(f'{name} {version}' for name, version in versions().items())}",
    ]
    if any(result.seed is not None and result.table is None for result in evaluation.results):
        lines.insert(2, f"Missing tables: drawn with seeds {', '.join(map(str, evaluation.seeds))}")
    if files := list(dict.fromkeys(result.table for result in evaluation.results if result.table)):
        lines.insert(2, f"Missing tables read: {', '.join(map(code, files))}")
    if corruption := data.get("corruption"):
        lines.insert(2, f"Corruption: {', '.join(f'{name} {value:g}' for name, value in corruption.items())}")
    lines += [f"Model {plain(model['label'])}: {code(model['folder'])}" for model in evaluation.models]
    return "## Where it comes from\n\n" + "\n".join(f"- {line}" for line in lines)


def capital(text: str) -> str:
    """The text with its first letter in capital."""
    return text[:1].upper() + text[1:]


def print_tables(console: Any, evaluation: Evaluation) -> None:
    """The main tables in the terminal, the best of each column in bold."""
    console.print(printable(f"{title(evaluation)}; {spread_of(evaluation)}"), highlight=False, markup=False)
    apart = by_pattern(evaluation.results)
    for table in [*tables(evaluation.results), *([] if apart is None else [apart])]:
        console.print(f"\n{capital(table.title)}", highlight=False)
        print_table(console, table._replace(headings=[name.replace(" % ", " %\n") for name in table.headings]))
    for line in changed(evaluation):
        console.print(f"warning: {printable(line)}", highlight=False, markup=False)
    if any(result.kind != NOTHING for result in evaluation.results):
        console.print("A rate counts what is MISSING.", highlight=False)


def print_table(console: Any, table: Table) -> None:
    """One table in the terminal, as narrow as its words and never cut: six columns of means and spreads take 80."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for place, heading in enumerate(table.headings):
        numbers = place >= table.words
        shown.add_column(Text(heading), justify="right" if numbers else "left", no_wrap=numbers, overflow="fold")
    for y, row in enumerate(table.rows):
        words = [printable(word).replace(" ± ", "±") for word in row]
        shown.add_row(*(Text(word, style="bold" if (y, x) in table.best else "") for x, word in enumerate(words)))
    console.print(shown)
