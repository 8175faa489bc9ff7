"""What `mora evaluate --retrieval` and `--zero-shot` leave behind: results.csv, results.json and report.md."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mora.contrast.ranks import DEPTHS
from mora.evaluation.cosines.models import ADAPTED, PRETRAINED
from mora.evaluation.cosines.retrieval import Retrieved
from mora.evaluation.cosines.zero_shot import Named
from mora.evaluation.grid import NOTHING
from mora.evaluation.tables import Table
from mora.metrics import spread
from mora.system.folders import write_together
from mora.system.machine import versions
from mora.system.markup import cell, code, plain

FILES = ("results.csv", "report.md", "results.json")
COUNTS = ("queries", "among")
WHEN = {PRETRAINED: "before", ADAPTED: "after"}
READING = {
    "retrieval": (
        "Recall at k: the share of queries of which a match is among the k nearest, by cosine. Ties count against the "
        "model. Candidates are all rows that have the other side; queries are those whose match is among them."
    ),
    "zero-shot": "Top-1 accuracy of the nearest class name; nothing was trained on labels by this comparison.",
}


@dataclass(frozen=True)
class Comparison:
    """Everything the files are written from; nothing in it depends on when or how fast it ran.

    Attributes:
        kind: "retrieval" or "zero-shot".
        results: of every model, before and after.
        models: per model: label, folder, configuration of its run.
        data: what `mora.evaluation.run.described` says.
        command: the command line.
        templates: of the prompts.
    """

    kind: str
    results: Sequence[Retrieved] | Sequence[Named]
    models: list[dict[str, Any]]
    data: dict[str, Any]
    command: str
    templates: tuple[str, ...] = ()


def write(found: Comparison, folder: Path) -> list[Path]:
    """Write the files together and return their paths."""
    contents = {
        "results.csv": as_csv(found).encode(),
        "report.md": markdown(found).encode(),
        "results.json": (json.dumps(as_json(found), indent=2) + "\n").encode(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_together(folder, contents)
    return [folder / name for name in FILES]


def lines_of(found: Comparison) -> list[dict[str, Any]]:
    """Every result as lines of a table."""
    return [line for result in found.results for line in result.lines()]


def as_csv(found: Comparison) -> str:
    """A row per model, state, table and direction, or modality; figures are shares of 1."""
    text, lines = io.StringIO(), lines_of(found)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*lines[0], "data", "split"])
    for line in lines:
        values = [cell(value) if isinstance(value, str) else value for value in line.values()]
        writer.writerow([*values, cell(found.data["name"]), found.data["split"]])
    return text.getvalue()


def as_json(found: Comparison) -> dict[str, Any]:
    """Everything, as JSON types."""
    own = {name: value for name, value in vars(found).items() if name != "results"}
    return {"format": 1, "versions": versions(), **own, "cells": lines_of(found)}


def table_of(found: Comparison) -> Table:
    """The figures in percent: a row per model, state and condition, or modality; means over tables."""
    if found.kind == "zero-shot":
        headings = ["model", "when", "by", "rows", "accuracy", "mean over the classes"]
        rows = [
            [line["model"], WHEN.get(line["state"], line["state"]), line["modality"], f"{line['rows']:,}"]
            + [f"{100 * line[name]:.2f}" for name in ("accuracy", "macro_accuracy")]
            for line in lines_of(found)
        ]
        return Table("Zero-shot classification, in %", headings, rows, set(), words=3)
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for line in lines_of(found):
        what = "nothing" if line["kind"] == NOTHING else f"{line['kind']} {100 * line['rate']:g} %"
        key = (line["model"], WHEN.get(line["state"], line["state"]), what, f"{line['query']} to {line['target']}")
        groups.setdefault(key, []).append(line)
    rows = []
    for place, cells in groups.items():
        mean = {name: sum(one[name] for one in cells) / len(cells) for name in ("queries", "candidates", "median_rank")}
        shares = [spread([one[f"recall_at_{depth}"] for one in cells]) for depth in DEPTHS]
        shown = [str(share) if len(cells) > 1 else f"{100 * share.mean:.1f}" for share in shares]
        rows.append(
            [
                *place,
                f"{mean['queries']:,.0f}",
                f"{mean['candidates']:,.0f}",
                *shown,
                f"{round(mean['median_rank'], 1):g}",
            ]
        )
    headings = ["model", "when", "missing", "from", *COUNTS, *(f"R@{depth}" for depth in DEPTHS), "rank"]
    return Table("Retrieval: recall at 1, 5, 10 in %, median rank", headings, rows, set(), words=4)


def narrow(table: Table) -> Table:
    """The table without how many asked whom, for a terminal of 80 columns."""
    kept = [place for place, heading in enumerate(table.headings) if heading not in COUNTS]
    rows = [[row[place] for place in kept] for row in table.rows]
    return table._replace(headings=[table.headings[place] for place in kept], rows=rows)


def markdown(found: Comparison) -> str:
    """The whole report."""
    data, table = found.data, table_of(found)
    lines = [READING[found.kind]]
    if found.templates:
        lines.append(f"Prompts: {', '.join(map(code, found.templates))}.")
    lines.append("Before its training: the adapters switched off, or the backbone loaded anew.")
    origin = [
        f"Command: {code(found.command)}",
        f"Data: {code(str(data['source']))}, split {data['split']}, {data['samples']:,} samples, fingerprint "
        f"`{data['fingerprint'][:16]}`",
        *(f"Model {plain(model['label'])}: {code(model['folder'])}" for model in found.models),
        f"Versions: {', '.join(f'{name} {version}' for name, version in versions().items())}",
    ]
    parts = [f"# {table.title}: {plain(data['name'])}, {data['split']} split", table.markdown()]
    parts += ["\n".join(f"- {line}" for line in lines), "## Where it comes from"]
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in origin)]) + "\n"
