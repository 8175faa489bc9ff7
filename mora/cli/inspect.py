"""`mora inspect`: what a training moved, how far, and what to change."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from mora.system.messages import printable

if TYPE_CHECKING:
    from mora.cli.parser import Commands


def add(commands: Commands) -> None:
    """Declare the arguments."""
    parser = commands.add_parser(
        "inspect",
        help="what a trained run moved, how far, and what to change",
        description="Diagnose a trained run: moves of its weights, new content, drift of embeddings, zero-shot "
        "accuracy before and after, and what to change, in words (docs/diagnosis.md).",
    )
    parser.add_argument("model", type=Path, metavar="RUN", help="folder of mora train")
    parser.add_argument(
        "--data", metavar="D", help="rows to look at (default: the run's own data); none: weights and head alone"
    )
    parser.add_argument("--split", default="validation", metavar="S", help="of the data (default: validation)")
    parser.add_argument("--rows", type=int, default=256, metavar="N", help="how many rows (default: 256)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write diagnosis.json, diagnosis.png, diagnosis.txt")
    parser.add_argument("--device", default="auto", metavar="D", help="auto (default), cpu or cuda")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, command: str) -> None:
    """Run `mora inspect`; ValueError, ImportError or OSError for what the user can mend."""
    from mora.evaluation.inspection import inspect_run, write
    from mora.system.machine import device_of

    found = inspect_run(options.model, options.data, options.split, options.rows, device=device_of(options.device))
    written = [] if options.out is None else write(found, options.out)
    if options.json:
        print(json.dumps(found.as_dict(), allow_nan=False))
        return
    print(found)
    if written:
        print()
        print(printable(f"Written: {', '.join(map(str, written))}"))
