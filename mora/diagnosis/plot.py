"""The picture of a diagnosis: moves, new content, Gram spectra, the run's epochs, pairs."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from mora.diagnosis.figures import Figures
from mora.diagnosis.table import short
from mora.diagnosis.words import words
from mora.system.machine import need
from mora.system.messages import printable

# Of Okabe and Ito's palette; grey is the start or the pretrained model in every panel.
GREY, ORANGE, BLUE, GREEN = "#9a9a9a", "#D55E00", "#0072B2", "#009E73"
MOST_NAMES = 40  # more than these are not legible on one axis


def draw(diagnosis: Figures) -> bytes:
    """A PNG with a panel for everything that is known; ImportError where matplotlib is absent."""
    need("matplotlib", "the picture")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: list[Callable[[Any, Figures], None]] = []
    if diagnosis.projections:
        panels.append(moves)
    if any(one.common_new is not None for one in diagnosis.projections):
        panels.append(contents)
    if diagnosis.grams:
        panels.append(spectra)
    if diagnosis.history is not None:
        panels.append(epochs)
    if diagnosis.behaviour.drifts:
        panels.append(cosines)
    rows = max(1, (len(panels) + 1) // 2)
    figure = Figure(figsize=(10.5, 3.6 * rows + 0.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, 2 if len(panels) > 1 else 1, squeeze=False).flatten()
    for axes, panel in zip(grid, panels, strict=False):
        panel(axes, diagnosis)
        dress(axes)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    figure.suptitle(f"{diagnosis.method}: {printable(words(diagnosis)[0])}", x=0.01, ha="left", fontsize=10,
                    parse_math=False)  # fmt: skip
    image = io.BytesIO()
    figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()


def moves(axes: Any, diagnosis: Figures) -> None:
    """The move of every weight: at the start, and what was learned."""
    found = diagnosis.projections
    if all(one.learned_move is None for one in found):
        bars(axes, [one.name for one in found], [("from the pretrained weight", BLUE, [o.total_move for o in found])])
    else:
        series = [
            ("start, from the pretrained weight", GREY, [one.start_move for one in found]),
            ("learned, from the start", ORANGE, [one.learned_move for one in found]),
        ]
        bars(axes, [one.name for one in found], series)
    axes.set_title("how far the weights moved", fontsize=10)
    axes.set_ylabel("norms of the weight")


def contents(axes: Any, diagnosis: Figures) -> None:
    """What of each term no rescaling of columns makes."""
    found = diagnosis.projections
    series = [
        ("start", GREY, [one.start_new for one in found]),
        ("common term", BLUE, [one.common_new for one in found]),
        ("specific term", GREEN, [one.specific_new for one in found]),
    ]
    bars(axes, [one.name for one in found], [one for one in series if any(v is not None for v in one[2])])
    axes.set_title("new content: outside a rescaling of columns", fontsize=10)
    axes.set_ylabel("norms of the weight")


def bars(axes: Any, names: Sequence[str], series: Sequence[tuple[str, str, Sequence[float | None]]]) -> None:
    """Groups of bars, a group for each name."""
    width = 0.8 / len(series)
    for place, (label, colour, heights) in enumerate(series):
        at = [position + (place - (len(series) - 1) / 2) * width for position in range(len(names))]
        axes.bar(at, [0.0 if h is None else h for h in heights], width, label=label, color=colour)
    shown = range(len(names)) if len(names) <= MOST_NAMES else range(0, len(names), -(-len(names) // MOST_NAMES))
    axes.set_xticks([*shown], [short(names[at]) for at in shown], rotation=90 if len(names) > 4 else 0, fontsize=8)
    for text in axes.get_xticklabels():
        text.set_parse_math(False)
    axes.margins(y=0.25)  # the legend stands above the bars
    axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=len(series))


def spectra(axes: Any, diagnosis: Figures) -> None:
    """Eigenvalues of every Gram matrix, at the start (grey) and now."""
    for place, one in enumerate(diagnosis.grams):
        at = [place + 0.8 * (rank + 0.5) / len(one.spectrum) - 0.4 for rank in range(len(one.spectrum))]
        if one.start is not None:
            axes.plot(at, one.start, "o-", color=GREY, markersize=5, label="start" if place == 0 else None)
        axes.plot(at, one.spectrum, "s-", color=ORANGE, markersize=4, label="now" if place == 0 else None)
    names = [short(one.name) for one in diagnosis.grams]
    axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 6 else 0, fontsize=8)
    axes.set_title("eigenvalues of the Gram matrices", fontsize=10)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)


def epochs(axes: Any, diagnosis: Figures) -> None:
    """Validation and loss of every epoch, and the one that was kept."""
    history = diagnosis.history
    assert history is not None
    numbers = range(1, len(history.validation) + 1)
    axes.plot(numbers, [100 * value for value in history.validation], "o-", color=BLUE, markersize=4)
    axes.axvline(history.best_epoch, color=GREEN, linewidth=1, linestyle="--")
    axes.set_ylabel(f"validation {history.metric}, %", color=BLUE)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title(f"best epoch {history.best_epoch} of {history.epochs} (dashed)", fontsize=10)
    other = axes.twinx()
    other.plot(numbers, history.losses, "-", color=ORANGE)
    other.set_ylabel("training loss", color=ORANGE)
    other.spines[["top"]].set_visible(False)


def cosines(axes: Any, diagnosis: Figures) -> None:
    """Cosines to the pretrained embeddings, between the two of a row and of different rows; zero-shot accuracy."""
    seen = diagnosis.behaviour
    names = [f"{one.modality}\nto itself" for one in seen.drifts]
    before: list[float | None] = [1.0] * len(names)
    after: list[float | None] = [one.cosine for one in seen.drifts]
    for pair in seen.pairings:
        both = "-".join(pair.modalities)
        names += [f"{both}\nsame row", f"{both}\nother rows"]
        before += [pair.before, pair.other_before]
        after += [pair.after, pair.other_after]
    if seen.zero_shot is not None:
        names.append("zero-shot\naccuracy")
        before.append(seen.zero_shot.before)
        after.append(seen.zero_shot.after)
    places = range(len(names))
    axes.bar([at - 0.2 for at in places], before, 0.4, color=GREY, label="pretrained")
    axes.bar([at + 0.2 for at in places], after, 0.4, color=ORANGE, label="adapted")
    axes.axhline(0, color="#444444", linewidth=0.6)
    axes.set_xticks([*places], [printable(name.replace("\n", " ")).replace(" ", "\n", 1) for name in names], fontsize=8)
    for text in axes.get_xticklabels():
        text.set_parse_math(False)
    axes.set_title("cosine of embeddings", fontsize=10)
    axes.margins(y=0.2)
    axes.legend(frameon=False, fontsize=8)


def dress(axes: Any) -> None:
    """Less ink."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
