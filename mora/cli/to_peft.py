"""`mora to-peft`: a trained run as a LoRA that PEFT loads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mora.system.messages import printable

if TYPE_CHECKING:
    from mora.cli.parser import Commands


def add(commands: Commands) -> None:
    """Declare the arguments."""
    parser = commands.add_parser(
        "to-peft",
        help="write a trained run as a LoRA that PEFT loads",
        description="Write what a run did to the weights as PEFT's files. LoRA and DoRA are written as they are; the "
        "update of MoRA is not of low rank: it is truncated, and what is left out is printed and written beside it.",
    )
    parser.add_argument("--model", type=Path, required=True, metavar="RUN", help="folder of mora train")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to make")
    parser.add_argument("--rank", type=int, metavar="R", help="of every projection (default: by --tolerance)")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.1,
        metavar="T",
        help="without --rank: the share of each update's Frobenius norm that may be left out (default: 0.1)",
    )
    parser.add_argument(
        "--names",
        default="model",
        metavar="N",
        help="model (default), or hugging_face: for transformers' CLIPModel of the same weights",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, command: str) -> None:
    """Run `mora to-peft`; ValueError, ImportError or OSError for what the user can mend."""
    from mora.export.peft import run_to_peft

    found = run_to_peft(options.model, options.out, options.rank, options.tolerance, options.names)
    print("Written as it is, without truncation." if found is None else str(found))
    print(printable(f"Written: {', '.join(str(path) for path in sorted(options.out.iterdir()))}"))
