"""`mora evaluate`: trained classifiers under missing modalities."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mora.cli.parser import add_reading

if TYPE_CHECKING:
    from mora.cli.parser import Commands
    from mora.data.tables import Missing

MOST_SEEDS = 1000


def add(commands: Commands) -> None:
    """Declare the arguments."""
    about = "Score trained classifiers with modalities missing, and compare them side by side."
    parser = commands.add_parser(
        "evaluate",
        help="score trained classifiers with modalities missing",
        description=f"{about} Writes report.md, results.csv, results.json and plot.png. Rates count what is MISSING.",
    )
    parser.add_argument(
        "--model", type=Path, nargs="+", required=True, metavar="RUN", help="folders of mora train, one or several"
    )
    parser.add_argument(
        "--data", metavar="D", help="openmoji, a folder or a manifest (default: what it was trained on)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to write")
    parser.add_argument("--split", default="test", metavar="S", help="train, validation, test (default), or all")
    parser.add_argument(
        "--grid",
        action="store_true",
        help="every type at every rate (see --types, --rates); of three modalities and more every subset of them",
    )
    parser.add_argument(
        "--missing",
        nargs="+",
        default=[],
        metavar="M",
        help="single conditions: both:0.7 takes the text of 35 %% of the rows and the image of 35 %%; "
        "audio+text:1, any:0.6, audio:0.7,image:0.3 (docs/data.md); or files of missing tables",
    )
    parser.add_argument(
        "--types", nargs="+", metavar="TYPE", help="of the grid (default: text image both; or every subset)"
    )
    parser.add_argument("--rates", nargs="+", type=float, metavar="R", help="of the grid (default: 0.5 0.7 0.9; or 1)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="missing tables per condition (default: 3)")
    parser.add_argument(
        "--retrieval",
        action="store_true",
        help="recall of texts by images and of images by texts instead, before and after the training",
    )
    parser.add_argument(
        "--zero-shot", action="store_true", help="accuracy of the nearest class name instead, before and after"
    )
    parser.add_argument(
        "--templates", nargs="+", metavar="T", help="of class names, {} is the name (default: a photo of a {})"
    )
    parser.add_argument("--class-names", nargs="+", metavar="C", help="in the order of the data's (default: its own)")
    parser.add_argument("--patches", type=float, default=0.0, metavar="S", help="share of every image to black out")
    parser.add_argument("--word-drop", type=float, default=0.0, metavar="P", help="share of the words to drop")
    add_reading(parser)
    parser.add_argument(
        "--savings", default="all", metavar="S", help="all (default), none, or some of pooled,trimmed (docs/savings.md)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, command: str) -> None:
    """Run `mora evaluate`; ValueError, ImportError or OSError for what the user can mend."""
    from mora.data.corruption import Corruption
    from mora.data.tables import Missing
    from mora.evaluation.run import Source, evaluate_runs
    from mora.training.config import LARGEST_COUNT

    for name, other in (("types", "grid"), ("rates", "grid"), ("templates", "zero_shot"), ("class_names", "zero_shot")):
        if getattr(options, name) is not None and not getattr(options, other):
            option = f"--{other.replace('_', '-')}"
            raise ValueError(f"{name}: got {getattr(options, name)} without {option}, expected {option} with it")
    for name, least, most in (("seeds", 1, MOST_SEEDS), ("batch", 1, LARGEST_COUNT), ("workers", 0, LARGEST_COUNT)):
        if getattr(options, name) < least:
            raise ValueError(f"{name}: got {getattr(options, name)}, expected a whole number of at least {least}")
        if getattr(options, name) > most:
            raise ValueError(f"{name}: got {getattr(options, name)}, expected a whole number of at most {most:,}")
    single = [given for given in options.missing if not Path(given).is_file()]
    conditions = [Missing.parse(given) for given in single]
    corruption = Corruption(patches=options.patches, word_drop=options.word_drop)
    source = Source(
        options.data,
        options.split,
        options.on_broken,
        options.data_name,
        options.extra_columns,
        None if corruption == Corruption() else corruption,
    )
    given: dict[str, Any] = {
        "seeds": range(options.seeds),
        "tables": [Path(given) for given in options.missing if given not in single],
        "source": source,
        "device": options.device,
        "batch": options.batch,
        "workers": options.workers,
        "savings": options.savings,
        "command": command,
    }
    if options.retrieval or options.zero_shot:
        without_a_head(options, conditions, given)
    else:
        grid = (options.types, options.rates) if options.grid else None
        evaluate_runs(options.model, options.out, conditions, grid=grid, **given)


def without_a_head(options: argparse.Namespace, conditions: list[Missing], given: dict[str, Any]) -> None:
    """Retrieval, or classes by their names."""
    from mora.data.missing import KINDS
    from mora.evaluation.cosines.run import RETRIEVAL, ZERO_SHOT, compare
    from mora.evaluation.cosines.zero_shot import TEMPLATES
    from mora.evaluation.grid import RATES, conditions_of

    if options.grid:
        conditions += conditions_of(options.types or KINDS, options.rates or RATES)
    if options.retrieval and options.zero_shot:
        raise ValueError("retrieval, zero-shot: got both, expected one: each writes files of its own")
    if options.zero_shot:
        given |= {"names": options.class_names, "templates": options.templates or TEMPLATES}
    kind = ZERO_SHOT if options.zero_shot else RETRIEVAL
    compare(options.model, options.out, kind, conditions=conditions, **given)
