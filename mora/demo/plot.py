"""The plot: accuracy of every method under every condition, with its spread and every single run."""

from __future__ import annotations

import io

from mora.demo.settings import LABELS
from mora.demo.statistics import COLUMNS, Row
from mora.demo.training import Run
from mora.system.machine import need

# Okabe and Ito's palette: tells methods apart with every common kind of colour blindness.
COLOURS = {
    "frozen": "#999999",
    "lora": "#56B4E9",
    "dora": "#0072B2",
    "mora": "#D55E00",
    "mora-no-gram": "#E69F00",
    "mora-no-specific": "#F0E442",
}


def draw(rows: list[Row], runs: list[Run], majority: float, title: str) -> bytes:
    """The plot as PNG; ImportError where matplotlib is absent."""
    need("matplotlib", "the plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.84 / len(rows)
    highest = 0.0
    for place, row in enumerate(rows):
        offset = (place - (len(rows) - 1) / 2) * width
        at = [position + offset for position in range(len(COLUMNS))]
        means = [100 * row.test[name].mean for name in COLUMNS]
        deviations = [100 * row.test[name].deviation for name in COLUMNS]
        axes.bar(
            at,
            means,
            0.92 * width,
            yerr=deviations,
            label=LABELS[row.method],
            color=COLOURS[row.method],
            edgecolor="#222222",
            linewidth=0.6,
            error_kw={"elinewidth": 1.2, "capsize": 3, "ecolor": "#222222"},
        )
        own = [run for run in runs if run.method == row.method]
        for position, name in zip(at, COLUMNS, strict=True):
            values = [100 * run.test[name] for run in own]
            axes.plot([position] * len(own), values, ".", color="#222222", markersize=3.5)
            highest = max(highest, *values)
        highest = max(highest, *(mean + deviation for mean, deviation in zip(means, deviations, strict=True)))
    axes.axhline(100 * majority, color="#222222", linestyle=":", linewidth=1, label="majority class")
    axes.set_xticks(range(len(COLUMNS)), list(COLUMNS.values()))
    axes.set_ylim(0, highest * 1.08)
    axes.set_ylabel("test accuracy, %")
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    handles, names = axes.get_legend_handles_labels()
    handles, names = [*handles[1:], handles[0]], [*names[1:], names[0]]  # the line after the bars
    axes.legend(
        handles, names, ncols=min(4, len(rows) + 1), frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.08)
    )
    image = io.BytesIO()
    figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()
