"""The demo's study from its committed results: `benchmarks/results/demo_search.json` and `demo_test.json`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from textwrap import wrap
from typing import Any

from benchmarks.plots import FOLDER
from benchmarks.rows import RESULTS
from mora.demo import curve, report, study
from mora.demo.methods import CURVE, LABELS
from mora.demo.outcome import TaskOutcome, remarks
from mora.demo.tasks import TASKS
from mora.evaluation.grid import NOTHING
from mora.metrics import spread
from mora.system.files import read_json

SEARCH, TEST = RESULTS / "demo_search.json", RESULTS / "demo_test.json"


@cache
def task(name: str) -> TaskOutcome:
    """One task of the finished test."""
    settings = study.settings(1, None)
    runs = [run for run in study.runs_in(TEST) if run.task == name]
    return TaskOutcome(settings, name, runs, head_parameters=HEADS[name])


# classes x (2 x 128 + 1): the linear head of each task
HEADS = {"badges": 15 * 257, "subgroups": 101 * 257}


def results(name: str) -> str:
    """The test's table of a task."""
    return report.main_table(task(name)).markdown()


def said(name: str) -> str:
    """What its numbers say."""
    return "\n".join(f"- {line}" for line in remarks(task(name)))


def sentence(name: str) -> str:
    """What is certain and what is within the spread."""
    return "\n".join(wrap(remarks(task(name))[-1], 118))


def lost(name: str) -> str:
    """What is left when all texts are lost, trained complete and trained with a share missing."""
    of, complete, incomplete = task(name), [], []
    for method in CURVE:
        before = of.test(method, NOTHING, complete=True)
        complete.append(f"{LABELS[method]} from {before} to {of.test(method, 'text', 1.0, complete=True)}")
        incomplete.append(f"{LABELS[method]} {of.test(method, 'text', 1.0)}")
    missing = f"{100 * of.settings.rate:g} %"
    said = (
        f"When all texts are lost, accuracy in % falls, trained complete, for {' and for '.join(complete)}; trained "
        f"with {missing} missing, {' and '.join(incomplete)} are left."
    )
    return "\n".join(wrap(said, 118))


def searched(markdown: Callable[..., str], name: str) -> str:
    """Every cell of a task's search: mean validation accuracy over the seeds, the chosen one in bold."""
    found = read_json(SEARCH)["tasks"][name]
    lines = []
    for method, of in found.items():
        cells = [f"{shown(cell['values'])}: {mark(cell, of['best'])}" for cell in of["cells"]]
        lines.append([LABELS[method], *cells])
    return markdown(["method", *(f"cell {place}" for place in range(1, 7))], lines)


def shown(values: dict[str, Any]) -> str:
    """ "0.03, 0.1"."""
    return ", ".join(f"{value:g}" for value in values.values())


def mark(cell: dict[str, Any], best: dict[str, Any]) -> str:
    """Mean and spread of a cell, in bold where it was chosen."""
    of = spread([value / 100 for value in cell["validation"]])
    return f"**{of}**" if cell["values"] == best else str(of)


PLOTS = {"demo_curve.png": curve.draw, "demo_parameters.png": curve.draw_parameters}

if __name__ == "__main__":
    for file, draw in PLOTS.items():
        (FOLDER / file).write_bytes(draw(task("badges")))
    for name in TASKS:
        print(results(name), said(name), sep="\n")
