"""Means, spreads and comparisons of the runs: every number that the table, the plot and the report show."""

from __future__ import annotations

from typing import Any, NamedTuple

from mora.demo.training import CONDITIONS, Run
from mora.metrics import Spread, spread

COLUMNS = {"complete": "nothing missing", "image": "images missing", "text": "texts missing", "both": "either missing"}


class Row(NamedTuple):
    """One method over its seeds."""

    method: str
    parameters: int
    validation: Spread
    test: dict[str, Spread]
    macro: dict[str, Spread]
    seconds: float


def rows_of(runs: list[Run]) -> list[Row]:
    """One row per method, in the order of the runs."""
    rows = []
    for method in dict.fromkeys(run.method for run in runs):
        own = [run for run in runs if run.method == method]
        rows.append(
            Row(
                method,
                own[0].parameters,
                spread([run.best for run in own]),
                {name: spread([run.test[name] for run in own]) for name in CONDITIONS},
                {name: spread([run.macro[name] for run in own]) for name in CONDITIONS},
                sum(run.seconds for run in own) / len(own),
            )
        )
    return rows


def paired(runs: list[Run], method: str, other: str, condition: str) -> Spread:
    """`method` minus `other` on the test part, seed by seed: both saw the same missing rows, head and order."""
    values: dict[str, dict[int, float]] = {name: {} for name in (method, other)}
    for run in runs:
        if run.method in values:
            values[run.method][run.seed] = run.test[condition]
    return spread([value - values[other][seed] for seed, value in values[method].items()])


def as_dict(row: Row) -> dict[str, Any]:
    """A row as JSON types."""
    return {
        "method": row.method,
        "trainable_adapter_parameters": row.parameters,
        "validation": row.validation._asdict(),
        "test": {name: value._asdict() for name, value in row.test.items()},
        "test_macro": {name: value._asdict() for name, value in row.macro.items()},
        "seconds_per_run": round(row.seconds, 2),
    }
