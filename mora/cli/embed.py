"""`mora embed`: the embeddings of a split, with presence, into a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mora.cli.parser import add_reading
from mora.system.messages import printable

if TYPE_CHECKING:
    from mora.cli.parser import Commands


def add(commands: Commands) -> None:
    """Declare the arguments."""
    parser = commands.add_parser(
        "embed",
        help="write the embeddings of images and texts, with what was there",
        description="Write a row per sample: id, an embedding per modality, whether it was there, and its label, if it "
        "has one.",
    )
    parser.add_argument("--model", type=Path, metavar="RUN", help="folder of mora train, or of mora merge")
    parser.add_argument("--backbone", metavar="NAME", help="instead of it: tiny or a name of open_clip, untrained")
    parser.add_argument("--pretrained", metavar="TAG", help="open_clip's tag (openai ...) or a file of weights")
    parser.add_argument(
        "--data", metavar="D", help="openmoji, a folder or a manifest (default: what it was trained on)"
    )
    parser.add_argument("--split", default="test", metavar="S", help="train, validation, test (default), or all")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="ends in .parquet, .npz or .safetensors"
    )
    parser.add_argument("--raw", action="store_true", help="as projected, not of length 1")
    parser.add_argument(
        "--absent",
        default="null",
        metavar="A",
        help="in the place of what is missing: null (default; NaN in .npz and .safetensors) or substitute",
    )
    add_reading(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, command: str) -> None:
    """Run `mora embed`; ValueError, ImportError or OSError for what the user can mend."""
    from mora.evaluation.cosines.embed import embed

    written = embed(
        options.model,
        options.data,
        options.out,
        split=options.split,
        backbone=options.backbone,
        pretrained=options.pretrained,
        normalize=not options.raw,
        absent=options.absent,
        on_broken=options.on_broken,
        name=options.data_name,
        extra_columns=options.extra_columns,
        device=options.device,
        batch=options.batch,
        workers=options.workers,
    )
    print(f"Written: {printable(str(written))}")
