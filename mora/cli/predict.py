"""`mora predict`: classify one image, one text, or both."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from mora.cli.train import by_tower
from mora.system.messages import printable

if TYPE_CHECKING:
    from mora.cli.parser import Commands
    from mora.evaluation.predict import Prediction

INSTEAD = {"text": "the empty text stands in", "image": "a white image stands in"}


def add(commands: Commands) -> None:
    """Declare the arguments."""
    parser = commands.add_parser(
        "predict",
        help="classify an image, a text, or both; or what else the model takes",
        description="Classify one sample that may lack some of its modalities.",
    )
    parser.add_argument("--model", type=Path, required=True, metavar="RUN", help="folder of mora train")
    parser.add_argument("--image", type=Path, metavar="F", help="image file; without it the image is missing")
    parser.add_argument("--text", metavar="T", help="the text; without it, or blank, it is missing")
    parser.add_argument("--audio", type=Path, metavar="F", help="a recording, for models with a tower of them")
    parser.add_argument(
        "--input", nargs="+", default=[], metavar="M=F", help="files of further modalities: sketch=drawing.png"
    )
    parser.add_argument("--top", type=int, default=5, metavar="K", help="how many classes to show (default: 5)")
    parser.add_argument("--device", default="auto", metavar="D", help="auto (default), cpu or cuda")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, command: str) -> None:
    """Run `mora predict`; ValueError, ImportError or OSError for what the user can mend."""
    from mora.evaluation.predict import predict
    from mora.runs.run import load_run
    from mora.system.machine import device_of

    inputs = by_tower("input", options.input, "a file") if options.input else {}
    inputs |= {} if options.audio is None else {"audio": options.audio}
    if options.image is None and not inputs and (options.text is None or not options.text.strip()):
        raise ValueError("image, text: got neither, expected --image, --text or both")
    if options.image is not None:
        check_image(options.image)
    loaded = load_run(options.model, device_of(options.device))
    prediction = predict(loaded, options.image, options.text, options.top, inputs)
    if options.json:
        print(json.dumps(prediction.to_dict()))  # ASCII: whole under every encoding of the output
    else:
        show(prediction, len(loaded.classes), tuple(loaded.model.towers))


def check_image(path: Path) -> None:
    """Refuse, before a model is loaded, what is no image file."""
    from mora.data.images import LARGEST_IMAGE
    from mora.system.files import regular_file

    try:
        regular_file(path, LARGEST_IMAGE)
    except FileNotFoundError:
        raise FileNotFoundError(f"image: got {path}, expected an image file") from None
    except ValueError as error:
        raise ValueError(str(error).replace("path:", "image:", 1)) from None


def said(name: str) -> str:
    """That a modality is absent, and what stands for it."""
    return f"the {name} is absent: {INSTEAD.get(name, 'its substitute stands in')}"


def show(prediction: Prediction, classes: int, modalities: tuple[str, ...] = ("image", "text")) -> None:
    """A line on what was there, then a class per line."""
    if prediction.missing == "none":
        print(f"{', '.join(modalities[:-1])} and {modalities[-1]} are there" if modalities[1:] else "all is there")
    else:
        print("\n".join(said(name) for name in prediction.missing.split(", ")))
    names = [printable(answer.name) for answer in prediction.answers]
    width = max(map(len, names))
    for name, answer in zip(names, prediction.answers, strict=True):
        mark = "*" if answer.chosen else " "
        print(f"{mark} {name:<{width}}  {100 * answer.probability:5.1f} %")
    if prediction.multi_label:
        print("* above 50 %: chosen (each class has a probability of its own)")
    elif len(prediction.answers) < classes:
        print(f"{len(prediction.answers)} of {classes} classes")
