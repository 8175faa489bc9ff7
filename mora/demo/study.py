"""The study behind the demo's figures, as `plan.json` says: first the search on validation, then the test.

    python -m mora.demo.study search --out search.json     # writes chosen.json beside it
    python -m mora.demo.study test --out test.json         # with the chosen.json of the package

Both go on where they were stopped. The test part is not read by the search; chosen.json is committed before the test.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from mora.demo.methods import METHODS
from mora.demo.plan import cells_of, plan
from mora.demo.runs import ROWS, Job, Run, train_all
from mora.demo.settings import Settings
from mora.demo.tasks import TASKS
from mora.sweeping.sweep import Sweep
from mora.system.files import read_json, write_bytes, write_json
from mora.system.machine import cores, versions

CHOSEN = "chosen.json"


def settings(jobs: int, limit: int | None) -> Settings:
    """The recipe of the plan."""
    recipe = plan()["recipe"]
    return Settings(**{**recipe, "targets": tuple(recipe["targets"]), "jobs": jobs, "limit": limit})


def sweep_of(task: str, method: str, head: float, given: Settings, place: Path) -> Sweep:
    """What the search tries with one method on one task, the head's learning rate being `head`."""
    given = replace(given, choices={name: {"head": head} for name in TASKS})
    base = given.config(task, method, 0, place / f"{task}-{method}", place / ROWS)
    cells = {name: tuple(values) for name, values in cells_of(method).items()}
    return Sweep(base, cells, tuple(plan()["search"]["seeds"]))


def search(out: Path, jobs: int, limit: int | None, say: Callable[[str], Any]) -> None:
    """Every cell of every method and task; the head's learning rate first, with which the others are tried."""
    found = begun(out, {"command": "python -m mora.demo.study search", "tasks": {}})
    given = settings(jobs, limit)
    for task, methods in plan()["search"]["methods"].items():
        rows = found["tasks"].setdefault(task, {})
        with tempfile.TemporaryDirectory(prefix="mora-study-", dir=out.parent) as place:
            for method in (method for method in methods if method not in rows):
                head = rows["frozen"]["best"]["head_lr"] if "frozen" in rows else 1.0
                rows[method] = searched(sweep_of(task, method, head, given, Path(place)), jobs)
                write_json(out, found)
                say(f"{task} {method}: {rows[method]['best']}")
    write_json(out.parent / CHOSEN, choice_of(found["tasks"]))


def searched(sweep: Sweep, jobs: int) -> dict[str, Any]:
    """Validation of every cell by seed, in %, and the values of the best."""
    from rich.console import Console

    outcome = sweep.run(jobs, console=Console(quiet=True), test=False)
    cells = [
        {"values": setting.values, "validation": [round(100 * score, 2) for score in setting.scores]}
        for setting in outcome.settings
    ]
    if outcome.winner is None:
        raise ValueError(f"{sweep.folder}: no setting came to its end: {outcome.settings[0].error}")
    return {"cells": cells, "best": outcome.winner.values}


def choice_of(tasks: dict[str, Any]) -> dict[str, Any]:
    """What the search chose, in the form of `chosen.json`: learning rate and scale (0 where there is none)."""
    chosen: dict[str, Any] = {}
    for task, methods in tasks.items():
        chosen[task] = {"head": methods["frozen"]["best"]["head_lr"]}
        for method, found in methods.items():
            if method != "frozen":
                chosen[task][method] = [found["best"]["lr"], found["best"].get(METHODS[method].scale, 0.0)]
    return chosen


def test(out: Path, jobs: int, limit: int | None, say: Callable[[str], Any]) -> None:
    """Every method with every seed, tested under every condition."""
    found = begun(out, {"command": "python -m mora.demo.study test", "runs": []})
    done = {(run["task"], run["method"], run["seed"], run["complete"]) for run in found["runs"]}
    given = settings(jobs, limit)
    todo = [
        Job(given, task, method, seed, complete)
        for task, parts in plan()["test"]["methods"].items()
        for seed in plan()["test"]["seeds"]
        for complete, methods in ((False, parts["incomplete"]), (True, parts["complete"]))
        for method in methods
        if (task, method, seed, complete) not in done
    ]

    def told(run: Run) -> None:
        found["runs"].append(run.to_dict())
        write_bytes(out, json.dumps(found, separators=(",", ":")).encode())  # indented it has three megabytes
        say(f"{run.task} {run.method} {run.seed}{' complete' * run.complete}: validation {100 * run.best:.1f} %")

    with tempfile.TemporaryDirectory(prefix="mora-study-", dir=out.parent) as place:
        train_all(todo, Path(place), jobs, told)


def runs_in(path: Path) -> list[Run]:
    """The runs of a finished test."""
    return [Run.from_dict(run) for run in read_json(path)["runs"]]


def begun(out: Path, fresh: dict[str, Any]) -> dict[str, Any]:
    """What an earlier call wrote, or the head of a new file."""
    if out.is_file():
        return read_json(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    return {**fresh, "plan": plan(), "versions": versions(), "date": date.today().isoformat()}


def main() -> None:
    """Do one half of the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("half", choices=("search", "test"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=cores())
    parser.add_argument("--limit", type=int, help="rows of each part, for a trial")
    given = parser.parse_args()
    {"search": search, "test": test}[given.half](given.out, given.jobs, given.limit, partial(print, flush=True))


if __name__ == "__main__":
    main()
