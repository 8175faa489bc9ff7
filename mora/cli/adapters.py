"""`mora adapters`: folders of saved adapters, listed, filled, emptied, and summed into a plain model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mora.cli.parser import Parser, finish
from mora.system.messages import aligned, printable

if TYPE_CHECKING:
    from mora.checkpoint.shelf import Saved
    from mora.cli.parser import Commands

FOLDER = "adapters in folders of their names (mora.save_adapters), one adapter, or a run of mora train"


def add(commands: Commands) -> None:
    """Declare the arguments."""
    parser = commands.add_parser(
        "adapters",
        help="list, add, delete and combine saved adapters with names",
        description="Keep several adapters of one pretrained model in a folder, and make plain models of them.",
    )
    actions = parser.add_subparsers(dest="action", metavar="action", title="actions", parser_class=Parser)
    one = actions.add_parser(
        "list",
        help="what a folder holds",
        description="Read every adapter of a folder, check it against its SHA-256, and print a line of each.",
    )
    one.add_argument("folder", type=Path, metavar="FOLDER", help=FOLDER)
    one.set_defaults(run=_list)
    one = actions.add_parser(
        "add",
        help="copy an adapter, or a run's, into a folder",
        description="Copy one adapter into a folder of adapters, under a name. Refused where a name is taken, or where "
        "the adapters were trained on different pretrained weights.",
    )
    one.add_argument("folder", type=Path, metavar="FOLDER", help="folder of adapters; made where it is not there")
    one.add_argument("--from", dest="source", type=Path, required=True, metavar="SOURCE", help=FOLDER)
    one.add_argument("--name", metavar="NAME", help="its name in FOLDER (default: that of SOURCE)")
    one.set_defaults(run=_add)
    one = actions.add_parser(
        "delete", help="remove an adapter from a folder", description="Remove one adapter from a folder of adapters."
    )
    one.add_argument("folder", type=Path, metavar="FOLDER", help="folder of adapters")
    one.add_argument("name", metavar="NAME", help="which")
    one.set_defaults(run=_delete)
    _add_combine(actions)
    finish(parser, actions)


def _add_combine(actions: Commands) -> None:
    parser = actions.add_parser(
        "combine",
        help="write a weighted sum of adapters as a plain checkpoint",
        description="Write W + sum of w (W_adapter - W) as a CLIP that loads without mora; one adapter with "
        "weight 1 is what merging it gives. A run's head is no part of it: mora merge writes that.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help=FOLDER)
    parser.add_argument(
        "--weights", required=True, metavar="NAME=W,...", help="a number for each adapter, films=0.7,food=0.3"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="folder to make")
    parser.add_argument(
        "--backbone",
        metavar="B",
        help="the CLIP they were trained on, which is checked (default: a run's own, else tiny)",
    )
    parser.add_argument("--pretrained", metavar="TAG", help="its weights, as in mora train")
    parser.add_argument("--format", default="open_clip", metavar="F", help="open_clip (default) or hugging_face")
    parser.set_defaults(run=_combine)


def parse_weights(text: str) -> dict[str, float]:
    """{"films": 0.7, "food": 0.3} of "films=0.7,food=0.3"; ValueError that names the argument and the part."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, given, number = part.strip().partition("=")
        try:
            weight = float(number)
        except ValueError:
            given = ""
        if not given or not name:
            raise ValueError(f"weights: got {part!r} in {text!r}, expected NAME=NUMBER: films=0.7,food=0.3")
        if name in found:
            raise ValueError(f"weights: got {name!r} twice in {text!r}, expected each adapter once")
        found[name] = weight
    return found


def line(one: Saved) -> tuple[str, ...]:
    """What a row of the list says."""
    config = one.config
    ranks, alpha = sorted({*config.ranks()}), config.alpha
    alphas = [f"{alpha:g}"] if not isinstance(alpha, dict) else [f"{name}={value:g}" for name, value in alpha.items()]
    targets = sorted({target for modality in one.layers for target in config.targets_of(modality)})
    blocks = "; ".join(f"{modality} {' '.join(map(str, layers))}" for modality, layers in one.layers.items())
    rank = f"{config.shared_rank}+{'/'.join(map(str, ranks))}"
    return one.name, rank, " ".join(alphas), " ".join(targets), blocks, f"{one.parameters:,}", one.sha256[:10]


def _list(options: argparse.Namespace, command: str) -> None:
    from mora.checkpoint.shelf import adapters_in

    heads = ("adapter", "rank", "alpha", "targets", "blocks", "parameters", "SHA-256")
    for row in aligned([heads, *map(line, adapters_in(options.folder).values())]):
        print(printable(row))


def _add(options: argparse.Namespace, command: str) -> None:
    from mora.checkpoint.shelf import add_saved

    one = add_saved(options.folder, options.source, options.name)
    print(printable(f"{one.name}: {one.parameters:,} parameters, in {one.folder}"))


def _delete(options: argparse.Namespace, command: str) -> None:
    from mora.checkpoint.shelf import delete_saved

    delete_saved(options.folder, options.name)
    print(printable(f"{options.name}: gone from {options.folder}"))


def _combine(options: argparse.Namespace, command: str) -> None:
    from mora.export.combine import combine_saved

    weights = parse_weights(options.weights)
    found = combine_saved(options.folder, weights, options.out, options.backbone, options.pretrained, options.format)
    said = " + ".join(f"{weight:g} {name}" for name, weight in weights.items())
    print(
        printable(f"{said}: written to {options.out}; loaded again, embeddings differ by {found['max_difference']:.1e}")
    )
