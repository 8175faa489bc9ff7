"""The plot: a heatmap of a grid of two fields, a line with its band for one, dots side by side for more."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from mora.evaluation.plot import COLOURS
from mora.evaluation.tables import FIGURES
from mora.sweeping.outcome import Outcome, Setting
from mora.sweeping.space import Range, word
from mora.system.checks import is_number
from mora.system.machine import need
from mora.system.messages import printable

BLUE, ORANGE = COLOURS[1], COLOURS[0]
LOG_FROM = 9.0  # the largest of some values over the smallest, from which an axis is logarithmic
MOST_TICKS = 8


def draw(outcome: Outcome) -> bytes:
    """A PNG; ImportError where matplotlib is absent."""
    need("matplotlib", "the plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    names = list(outcome.plan.fields)
    heat = len(names) == 2 and outcome.plan.search == "grid"
    wide = 7.2 if len(names) < 3 and (heat or len(names) == 1) else 1.2 + 2.2 * len(names)
    figure = Figure(figsize=(wide, 4.6), dpi=150, layout=ConstrainedLayoutEngine(rect=(0, 0.03, 1, 0.97)))
    FigureCanvasAgg(figure)
    if heat:
        heatmap(figure, outcome, names)
    elif len(names) == 1:
        line(figure, outcome, names[0])
    else:
        dots(figure, outcome, names)
    seeds = len(outcome.plan.seeds)
    over = f"mean over {seeds} seeds" if seeds > 1 else "one seed"
    marks = ["" if heat else "○ best", "x failed or ended early" if marked(outcome) and not heat else ""]
    if len(names) == 1 and seeds > 1:
        marks.append("band and bars: one standard deviation; dots: seeds")
    if found := [mark for mark in marks if mark]:
        figure.text(0.99, 0.005, "   ".join(found), ha="right", va="bottom", fontsize=8, color="#555555")
    title = f"{outcome.data['name']}: validation {FIGURES[outcome.metric]} in %, {over}"
    figure.suptitle(printable(title), x=0.01, ha="left", fontsize=11, parse_math=False)
    image = io.BytesIO()
    figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()


def marked(outcome: Outcome) -> bool:
    """Whether a setting has no value."""
    return any(not setting.counts for setting in outcome.settings)


def heatmap(figure: Any, outcome: Outcome, names: Sequence[str]) -> None:
    """Two fields of a grid: a square each with mean and spread, the winner framed."""
    from matplotlib.patches import Rectangle

    axes = figure.subplots()
    ys, xs = (list(outcome.plan.fields[name]) for name in names)  # type: ignore[arg-type]
    means = [[float("nan")] * len(xs) for _ in ys]
    for setting in outcome.settings:
        if setting.counts and setting.spread is not None:
            y, x = (place(options, setting.values[name]) for options, name in ((ys, names[0]), (xs, names[1])))
            means[y][x] = 100 * setting.spread.mean
    axes.set_facecolor("#eeeeee")
    image = axes.imshow(means, cmap="cividis", aspect="auto", origin="lower")
    low, high = image.get_clim()
    for setting in outcome.settings:
        y, x = (place(options, setting.values[name]) for options, name in ((ys, names[0]), (xs, names[1])))
        text, light = setting.state, False
        if setting.counts and setting.spread is not None:
            text = f"{100 * setting.spread.mean:.1f}"
            text += f"\n± {100 * setting.spread.deviation:.1f}" if setting.seeds > 1 else ""
            light = 100 * setting.spread.mean < (low + high) / 2
        axes.text(x, y, text, ha="center", va="center", fontsize=9, color="white" if light else "black")
    if (best := outcome.winner) is not None:
        y, x = (place(options, best.values[name]) for options, name in ((ys, names[0]), (xs, names[1])))
        axes.add_patch(Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, fill=False, edgecolor=ORANGE, linewidth=2.5))
    axes.set_xticks(range(len(xs)), [printable(word(value)) for value in xs])
    axes.set_yticks(range(len(ys)), [printable(word(value)) for value in ys])
    axes.set(xlabel=names[1], ylabel=names[0])
    figure.colorbar(image, ax=axes, label="%")


def place(options: Sequence[Any], value: Any) -> int:
    """Which of the options a value is."""
    return next(number for number, option in enumerate(options) if option == value)


def line(figure: Any, outcome: Outcome, name: str) -> None:
    """One field: means joined by a line, a band of one standard deviation, every seed as a dot."""
    axes = figure.subplots()
    there = [setting for setting in outcome.settings if setting.counts]
    at, joined = axis(axes, outcome, name)
    there = sorted(there, key=lambda setting: at(setting))
    x = [at(setting) for setting in there]
    found = [setting.spread for setting in there if setting.spread is not None]
    mean, deviation = [100 * one.mean for one in found], [100 * one.deviation for one in found]
    axes.plot(x, mean, color=BLUE, marker="o", markersize=5, linewidth=1.6 if joined else 0)
    if joined:
        low, high = zip(*((m - d, m + d) for m, d in zip(mean, deviation, strict=True)), strict=True)
        axes.fill_between(x, low, high, color=BLUE, alpha=0.15, linewidth=0)
    else:
        axes.errorbar(x, mean, yerr=deviation, color=BLUE, linestyle="", capsize=3)
    for setting, where in zip(there, x, strict=True):
        axes.plot([where] * len(setting.scores), [100 * score for score in setting.scores], ".", color=BLUE, ms=3)
    dress(axes, outcome, at)
    axes.set_ylabel(f"{FIGURES[outcome.metric]}, %")


def dots(figure: Any, outcome: Outcome, names: Sequence[str]) -> None:
    """Several fields: a panel each, side by side, in which every setting is a dot."""
    row = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(row, names, strict=True):
        at, _ = axis(axes, outcome, name)
        there = [setting for setting in outcome.settings if setting.counts and setting.spread is not None]
        axes.plot(
            [at(setting) for setting in there], [100 * setting.spread.mean for setting in there],  # type: ignore[union-attr]
            "o", color=BLUE, markersize=5, alpha=0.55, markeredgewidth=0,
        )  # fmt: skip
        dress(axes, outcome, at)
    row[0].set_ylabel(f"{FIGURES[outcome.metric]}, %")


def axis(axes: Any, outcome: Outcome, name: str) -> tuple[Any, bool]:
    """(where a setting stands on the x axis of one field, whether neighbours may be joined by a line)."""
    values = outcome.plan.fields[name]
    axes.set_xlabel(name)
    axes.margins(x=0.08)
    if isinstance(values, Range) or all(is_number(value) and value > 0 for value in values):
        ends = (values.low, values.high) if isinstance(values, Range) else (min(values), max(values))
        log = values.log if isinstance(values, Range) else ends[1] >= LOG_FROM * ends[0]
        if log:
            axes.set_xscale("log")
        if not isinstance(values, Range) and len(values) <= MOST_TICKS:
            axes.set_xticks(values, [word(value) for value in values])
            axes.set_xticks([], minor=True)
        return (lambda setting: setting.values[name]), True
    axes.set_xticks(range(len(values)), [printable(word(value)).replace(" ", "\n") for value in values])
    axes.set_xlim(-0.5, len(values) - 0.5)
    return (lambda setting: place(values, setting.values[name])), False


def dress(axes: Any, outcome: Outcome, at: Any) -> None:
    """The winner, the settings that have no value, and the grid of one panel."""
    best = outcome.winner
    if best is not None and best.spread is not None:
        axes.plot([at(best)], [100 * best.spread.mean], "o", color=ORANGE, markersize=9, fillstyle="none", mew=2)
    without: list[Setting] = [setting for setting in outcome.settings if not setting.counts]
    if without:
        low, high = axes.get_ylim()
        axes.plot([at(setting) for setting in without], [low] * len(without), "x", color="#222222", markersize=6,
                  clip_on=False)  # fmt: skip
        axes.set_ylim(low, high)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
