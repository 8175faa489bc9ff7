"""`mora evaluate`: trained classifiers under missing modalities."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mora.commands.parser import Commands


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
    parser.add_argument("--split", default="test", metavar="S", help="train, validation or test (default)")
    parser.add_argument("--grid", action="store_true", help="every type at every rate (see --types, --rates)")
    parser.add_argument(
        "--missing",
        nargs="+",
        default=[],
        metavar="TYPE:RATE",
        help="single conditions: both:0.7 takes the text of 35 %% of the rows and the image of 35 %%",
    )
    parser.add_argument("--types", nargs="+", metavar="TYPE", help="of the grid (default: text image both)")
    parser.add_argument("--rates", nargs="+", type=float, metavar="R", help="of the grid (default: 0.5 0.7 0.9)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="missing tables per condition (default: 3)")
    parser.add_argument("--on-broken", default="raise", metavar="W", help="raise (default) or skip unreadable images")
    parser.add_argument("--device", default="auto", metavar="D", help="auto (default), cpu or cuda")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="rows at a time (default: 64)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read images (default: 0)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, command: str) -> None:
    """Run `mora evaluate`; ValueError, ImportError or OSError for what the user can mend."""
    from mora.data.missing import KINDS
    from mora.evaluation.grid import RATES, Condition
    from mora.evaluation.run import evaluate_runs

    for name in ("types", "rates"):
        if getattr(options, name) is not None and not options.grid:
            raise ValueError(f"{name}: got {getattr(options, name)} without --grid, expected --grid with it")
    for name, least in (("seeds", 1), ("batch", 1), ("workers", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"{name}: got {getattr(options, name)}, expected a whole number of at least {least}")
    conditions = [Condition.parse(text) for text in options.missing]
    if options.grid:
        conditions += [
            Condition(kind, rate).checked() for kind in options.types or KINDS for rate in options.rates or RATES
        ]
    evaluate_runs(
        options.model,
        options.out,
        conditions,
        seeds=range(options.seeds),
        data=options.data,
        split=options.split,
        on_broken=options.on_broken,
        device=options.device,
        batch=options.batch,
        workers=options.workers,
        command=command,
    )
