"""The results as data: one JSON object per line, shape and provider, in `benchmarks/results/LEVEL.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.case import Shape

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def append(rows: Iterable[Row], folder: Path) -> None:
    """Add each row to the file of its level, whole lines at once."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {}
    for row in rows:
        lines.setdefault(row["level"], []).append(json.dumps(row) + "\n")
    for level, added in lines.items():
        with (folder / f"{level}.jsonl").open("a", encoding="utf-8") as file:
            file.write("".join(added))


def read(folder: Path = RESULTS) -> list[Row]:
    """Every row of a folder, oldest first within each file; ValueError names a damaged line."""
    rows = []
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: got no JSON ({error}), expected a row") from error
    return rows


def kind_of(row: Row) -> str:
    """ "cpu" or "cuda"."""
    return "cpu" if row["driver"] is None else "cuda"


def key(shape: Shape) -> str:
    """One string per shape."""
    return json.dumps(shape, sort_keys=True)


def latest(rows: Iterable[Row]) -> list[Row]:
    """Of every device, level, shape, mode and provider the row that was written last, in the order of first sight."""
    found: dict[tuple[str, ...], Row] = {}
    for row in rows:
        found[kind_of(row), row["device"], row["level"], key(row["shape"]), row["mode"], row["provider"]] = row
    return list(found.values())


def shown(found: Sequence[Row], level: str, kind: str = "cpu", mode: str = "eager") -> list[Row]:
    """The newest rows of one level on the machine of that kind that was measured last."""
    candidates = [r for r in latest(found) if r["level"] == level and kind_of(r) == kind and r["mode"] == mode]
    if not candidates:
        return []
    device = max(candidates, key=lambda row: row["date"])["device"]
    return [row for row in candidates if row["device"] == device]
