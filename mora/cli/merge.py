"""`mora merge`: a trained run as a plain checkpoint."""

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
        "merge",
        help="write a trained run as a plain checkpoint with a model card",
        description="Fold a trained run into a plain CLIP that loads without mora, with its head and a model card.",
    )
    parser.add_argument("--model", type=Path, required=True, metavar="RUN", help="folder of mora train")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to make")
    parser.add_argument("--format", default="open_clip", metavar="F", help="open_clip (default) or hugging_face")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, command: str) -> None:
    """Run `mora merge`; ValueError, ImportError or OSError for what the user can mend."""
    from mora.export import merge_run

    found = merge_run(options.model, options.out, options.format)
    print(
        f"Merged and adapted logits differ by at most {found['max_difference']:.1e} (largest logit "
        f"{found['max_logit']:.1f}); {found['changed_predictions']} of {found['rows']} predictions change."
    )
    print(printable(f"Written: {', '.join(str(path) for path in sorted(options.out.iterdir()))}"))
