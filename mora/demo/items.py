"""Three rows of the test part as a person sees them, with the answers of the frozen and of the merged model."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from mora.data.dataset import Dataset
from mora.evaluation.predict import predict
from mora.runs.run import LoadedRun
from mora.system.machine import need
from mora.system.messages import printable

LACKS = ("nothing", "photo", "text")


class Item(NamedTuple):
    """One row: what it shows, what it lacks, and the likeliest answer of each model with its probability."""

    image: Any
    text: str
    lacks: str
    truth: str
    frozen: tuple[str, float]
    merged: tuple[str, float]

    @property
    def line(self) -> str:
        """The row in words, on two lines."""
        image = "no picture" if self.lacks == "photo" else "picture"
        text = "no text" if self.lacks == "text" else f'"{self.text}"'
        answers = [
            f"{name}: {answer} {100 * share:.0f} %{'' if answer == self.truth else ' (wrong)'}"
            for name, (answer, share) in (("frozen", self.frozen), ("merged", self.merged))
        ]
        return f"{image}, {text}\n    it is: {self.truth}; {'; '.join(answers)}"


def items(frozen: LoadedRun, merged: LoadedRun, dataset: Dataset) -> list[Item]:
    """The rows at a quarter, a half and three quarters of the test part: whole, without picture, without text."""
    found = []
    for place, lacks in enumerate(LACKS, 1):
        sample = dataset[place * len(dataset) // 4]
        seen = (None if lacks == "photo" else sample.image, None if lacks == "text" else sample.text)
        answers = [predict(run, *seen, top=1).answers[0] for run in (frozen, merged)]
        pairs = [(answer.name, answer.probability) for answer in answers]
        truth = dataset.classes[int(sample.label)]
        found.append(Item(sample.image, sample.text or "", lacks, truth, *pairs))
    return found


def draw(found: Sequence[Item], method: str) -> bytes:
    """A PNG with the rows side by side; ImportError where matplotlib is absent."""
    need("matplotlib", "the plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.9), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, item in zip(figure.subplots(1, len(found)), found, strict=True):
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color("#bbbbbb")
        if item.lacks == "photo":
            axes.set_facecolor("#f2f2f2")
            axes.text(0.5, 0.5, "no picture", ha="center", va="center", transform=axes.transAxes, color="#777777")
            axes.set_aspect("equal")
        else:
            axes.imshow(item.image)
        text = "no text" if item.lacks == "text" else f"“{printable(item.text)}”"
        axes.set_title(text, fontsize=9, color="#777777" if item.lacks == "text" else "#000000", wrap=True)
        lines = [f"it is a {item.truth}"]
        for name, (answer, share) in (("frozen + head", item.frozen), (f"{method}, merged", item.merged)):
            lines.append(f"{name}: {answer}, {100 * share:.0f} % {'✓' if answer == item.truth else '✗'}")
        axes.set_xlabel("\n".join(lines), fontsize=9)
    image = io.BytesIO()
    figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()
