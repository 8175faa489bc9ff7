"""The plot: the headline figure over the share of rows that lack a modality, with its spread over tables."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from mora.evaluation.grid import NOTHING, Result
from mora.evaluation.tables import FIGURES, Summary, lacking
from mora.system.machine import need
from mora.system.messages import printable

# Okabe and Ito's palette: tells lines apart with every common kind of colour blindness; markers do so in grey.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def draw(results: Sequence[Result], title: str) -> bytes:
    """A PNG with a line per type for one model, and a panel per type with a line per model for several.

    Raises ImportError where matplotlib is absent.
    """
    need("matplotlib", "the plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    summary = Summary(results)
    alone = len(summary.models) == 1
    panels = [None] if alone or not summary.kinds else summary.kinds
    figure = Figure(figsize=(7.2 if alone else 1.4 + 3.6 * len(panels), 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, panel in zip(row, panels, strict=True):
        if alone:
            lines = [(lacking(kind), summary.models[0], kind) for kind in summary.kinds or [NOTHING]]
        else:
            lines = [(model, model, panel or NOTHING) for model in summary.models]
        for place, (_, model, kind) in enumerate(lines):
            line(axes, summary, model, kind, place, shift=1.2 * (place - (len(lines) - 1) / 2))
        dress(axes, summary)
        if panel is not None:
            axes.set_title(lacking(panel), fontsize=10)
    row[0].set_ylabel(f"{FIGURES[summary.metric]}, %")
    shown = "\n".join(map(printable, title.split("\n")))
    figure.suptitle(shown, x=0.01, ha="left", fontsize=11, parse_math=False)
    handles, places = row[0].get_legend_handles_labels()
    legend = figure.legend(handles, places, loc="outside lower center", ncols=min(4, len(places)), frameon=False)
    for text, (label, _, _) in zip(legend.get_texts(), lines, strict=True):
        text.set(text=printable(label), parse_math=False)
    image = io.BytesIO()
    figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()


def line(axes: Any, summary: Summary, model: str, kind: str, place: int, shift: float) -> None:
    """One line: means over tables with bars of one standard deviation, and every single table as a dot.

    `shift` moves it sideways, so that bars of several lines stand side by side. Its label is its place: matplotlib
    hides labels that begin with an underscore, and the legend gets the names as they are.
    """
    conditions = [(NOTHING, 0.0), *((kind, rate) for rate in summary.rates if kind != NOTHING)]
    there = [(c, value) for c in conditions if (value := summary.at(model, *c)) is not None]
    at = [100 * rate + (shift if rate else 0.0) for (_, rate), _ in there]
    colour = COLOURS[place % len(COLOURS)]
    axes.errorbar(
        at,
        [100 * value.mean for _, value in there],
        yerr=[100 * value.deviation for _, value in there],
        label=str(place),
        color=colour,
        marker=MARKERS[place % len(MARKERS)],
        markersize=5,
        linewidth=1.6,
        elinewidth=1.1,
        capsize=3,
    )
    for x, (condition, _) in zip(at, there, strict=True):
        cell = summary.cells[(model, *condition)]
        if len(cell) > 1:
            axes.plot([x] * len(cell), [100 * r.value for r in cell], ".", color=colour, markersize=3, alpha=0.6)


def dress(axes: Any, summary: Summary) -> None:
    """Axis, ticks and grid of one panel."""
    ticks = [0.0, *(100 * rate for rate in summary.rates if rate > 0)]
    axes.set_xticks(ticks, [f"{tick:.4g}" for tick in ticks])
    axes.set_xlabel("missing, % of the rows" if summary.rates else "missing, % of the rows: nothing taken away")
    axes.set_xlim(-5, max(ticks[-1], 0) + 5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
