"""Classes and probabilities of one sample that may lack its image or its text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from mora.heads import NONE
from mora.metrics import THRESHOLD
from mora.system.checks import is_whole
from mora.system.files import read_bytes

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
        missing: "none", "text" or "image": what was absent, and stood in for by its substitute.
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
    run: LoadedRun, image: str | Path | Image | None = None, text: str | None = None, top: int | None = None
) -> Prediction:
    """Classify one sample.

    Args:
        run: from `mora.runs.run.load_run`.
        image: a file or a PIL image; None means missing.
        text: None or blank means missing.
        top: how many answers, at least 1; None is all classes.

    Raises:
        ValueError: both are missing, an image that cannot be read or is no regular file, a text that is no Unicode, or
            `top` out of range.
        OSError: the image file is not there.
    """
    if run.model.head_kind == NONE:
        raise ValueError(
            f"model: {run.folder} was trained on pairs and has no classes, expected a classifier; mora embed takes it"
        )
    text = None if text is None or not text.strip() else text
    if image is None and text is None:
        raise ValueError("image, text: got neither, expected an image, a text or both")
    if text is not None:
        check_text(text)
    if top is not None and (not is_whole(top) or top < 1):
        raise ValueError(f"top: got {top!r}, expected a whole number of at least 1")
    device = run.model.device
    logits = run.model.eval()(
        None if image is None else run.preprocess(read(image))[None].to(device),
        None if text is None else run.tokenize([text]).to(device),
    )[0].float()
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
    missing = "image" if image is None else "text" if text is None else "none"
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


def read(image: str | Path | Image) -> Image:
    """The image as RGB, on white where it is transparent, as the data sets read theirs."""
    from mora.data.images import LARGEST_IMAGE, decode, to_rgb

    if isinstance(image, (str, Path)):
        return decode(read_bytes(Path(image), LARGEST_IMAGE), str(image))
    return to_rgb(image)
