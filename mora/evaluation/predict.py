"""Classes and probabilities of one sample that may lack some of its modalities."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from mora.data.modalities import known, modality
from mora.data.presence import PAIR
from mora.heads import NONE
from mora.metrics import THRESHOLD
from mora.system.checks import is_whole

if TYPE_CHECKING:
    from PIL.Image import Image

    from mora.runs.run import LoadedRun


class Answer(NamedTuple):
    """One class, its probability, and whether it is chosen: the likeliest, or each above 0.5 for multi-label tasks."""

    name: str
    probability: float
    chosen: bool


class Prediction(NamedTuple):
    """What a classifier says of one sample.

    Attributes:
        answers: likeliest first; probabilities are a softmax, or sigmoids of their own for multi-label tasks.
        missing: "none", "text", "image" or others, separated by commas: what was absent, and stood in for by its
            substitute.
        multi_label: whether several classes may be chosen.
    """

    answers: tuple[Answer, ...]
    missing: str
    multi_label: bool

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return {
            "missing": self.missing,
            "multi_label": self.multi_label,
            "answers": [answer._asdict() for answer in self.answers],
        }


@torch.no_grad()
def predict(
    run: LoadedRun,
    image: str | Path | Image | None = None,
    text: str | None = None,
    top: int | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> Prediction:
    """Classify one sample.

    Args:
        run: from `mora.runs.run.load_run`.
        image: a file or a PIL image; None means missing.
        text: None or blank means missing.
        top: how many answers, at least 1; None is all classes.
        inputs: others by modality, such as {"audio": "a.ogg"}: a file, or a value as `mora.data.Modality.decode` makes.

    Raises:
        ValueError: all are missing, one that the model has no tower for, a file that cannot be read or is no regular
            one, a text that is no Unicode, or `top` out of range.
        OSError: a file is not there.
    """
    if run.model.head_kind == NONE:
        raise ValueError(
            f"model: {run.folder} was trained on pairs and has no classes, expected a classifier; mora embed takes it"
        )
    given = {"image": image, "text": None if text is None or not text.strip() else text, **(inputs or {})}
    given = {name: value for name, value in given.items() if value is not None}
    towers = run.model.towers
    if unknown := [name for name in given if name not in towers]:
        raise ValueError(f"inputs: got {', '.join(unknown)}, expected some of {', '.join(towers)}")
    if not given:
        pair = set(towers) == set(PAIR)
        expected = "neither, expected an image, a text or both" if pair else "none, expected one at least"
        raise ValueError(f"{', '.join(towers)}: got {expected}")
    if "text" in given:
        check_text(given["text"])
    if top is not None and (not is_whole(top) or top < 1):
        raise ValueError(f"top: got {top!r}, expected a whole number of at least 1")
    device = run.model.device
    values = {name: modality(name).read(value) if name in known() else value for name, value in given.items()}
    ready = {name: run.preparing.one(name, value)[None].to(device) for name, value in values.items()}
    logits = run.model.eval()(inputs=ready)[0].float()
    probabilities = (logits.sigmoid() if run.multi_label else logits.softmax(dim=-1)).cpu()
    order = probabilities.argsort(descending=True, stable=True).tolist()
    answers = [
        Answer(
            run.classes[index],
            float(probabilities[index]),
            bool(probabilities[index] > THRESHOLD) if run.multi_label else place == 0,
        )
        for place, index in enumerate(order[:top])
    ]
    missing = ", ".join(name for name in towers if name not in given) or "none"
    return Prediction(tuple(answers), missing, run.multi_label)


def check_text(text: str) -> None:
    """ValueError for half of a surrogate pair: no tokenizer takes it. Bytes on the command line that are not UTF-8
    become one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text: got {text!r}, character {error.start + 1} of which is half of a surrogate pair, expected Unicode"
        ) from error
