"""The paper's plot: accuracy over the share that is missing, trained with a share missing and trained complete."""

from __future__ import annotations

import io
from typing import Any

from mora.demo.methods import LABELS, METHODS
from mora.demo.outcome import HEADINGS, TaskOutcome, count
from mora.demo.runs import KINDS
from mora.evaluation.grid import NOTHING
from mora.evaluation.plot import COLOURS, MARKERS
from mora.system.machine import need

# By method, the same in every picture; the palette of evaluation/plot has seven.
LOOKS = dict(zip(METHODS, zip((*COLOURS, "#8c564b", "#999999"), (*MARKERS, "*", "<"), strict=True), strict=True))
ABLATIONS = ("mora-no-gram", "mora-fixed-gram", "mora-no-specific")  # beside the others a curve shows nothing of them


def canvas(panels: int, width: float) -> tuple[Any, Any]:
    """A figure and its axes, side by side."""
    need("matplotlib", "the plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    row = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    for axes in row:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, row


def png(figure: Any) -> bytes:
    """The figure as a file; nothing in it depends on when it was drawn."""
    image = io.BytesIO()
    figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()


def draw(task: TaskOutcome) -> bytes:
    """A PNG with a panel for images, texts and either missing; ImportError where matplotlib is absent."""
    figure, row = canvas(len(KINDS), 11.4)
    methods = [method for method in task.methods if method not in ABLATIONS] or task.methods
    shown = [(method, False) for method in methods] + [(m, True) for m in methods if task.of(m, True)]
    for axes, kind in zip(row, KINDS, strict=True):
        for method, complete in shown:
            line(axes, task, method, kind, complete)
        axes.set_title(HEADINGS[kind], fontsize=10)
        axes.set_xlabel("missing in the test part, % of the rows")
    row[0].set_ylabel("accuracy, %")
    figure.suptitle(
        f"{task.title}: solid lines trained with {100 * task.settings.rate:g} % missing, dashed trained complete\n"
        f"mean over {count(task.seeds, 'seed')}, band of one standard deviation",
        x=0.01, ha="left", fontsize=11,
    )  # fmt: skip
    handles, labels = row[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False, fontsize=9)
    return png(figure)


def line(axes: Any, task: TaskOutcome, method: str, kind: str, complete: bool) -> None:
    """One method's means over the share missing, with its band."""
    colour, marker = LOOKS[method]
    rates = [0.0, *task.summaries[complete].rates]
    found = [task.test(method, kind if rate else NOTHING, rate, complete=complete) for rate in rates]
    means, spreads = [100 * one.mean for one in found], [100 * one.deviation for one in found]
    at = [100 * rate for rate in rates]
    label = f"{LABELS[method]}, trained complete" if complete else LABELS[method]
    axes.plot(
        at, means, label=label, color=colour, linestyle="--" if complete else "-", linewidth=1.6, markersize=4,
        marker=marker,
    )  # fmt: skip
    low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
    axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)


def draw_parameters(task: TaskOutcome) -> bytes:
    """A PNG of accuracy against numbers trained, head included, with nothing and with either missing."""
    kinds = list(task.columns)[:: max(1, len(task.columns) - 1)]
    figure, row = canvas(len(kinds), 9.4)
    for axes, kind in zip(row, kinds, strict=True):
        for method in task.methods:
            colour, marker = LOOKS[method]
            found, numbers = task.test(method, kind), task.of(method)[0].parameters + task.head_parameters
            axes.errorbar(
                [numbers], [100 * found.mean], yerr=[100 * found.deviation], label=LABELS[method], capsize=3,
                color=colour, marker=marker, linestyle="",
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_title(HEADINGS[kind], fontsize=10)
        axes.set_xlabel("numbers trained, head included")
    row[0].set_ylabel("accuracy, %")
    handles, labels = row[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), frameon=False, fontsize=9)
    figure.suptitle(f"{task.title}: mean ± standard deviation over {count(task.seeds, 'seed')}", x=0.01, ha="left")
    return png(figure)
