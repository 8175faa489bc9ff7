"""The command `mora`: subcommands, each importing what it needs when it runs."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mora.version import __version__


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and exit with code 2."""

    def error(self, message: str) -> NoReturn:
        """Print `mora demo: ...` and exit."""
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors of the user are one line on stderr and exit code 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = Parser(prog="mora", description="Adapt a CLIP to samples that lack their image or their text.")
    parser.add_argument("--version", action="version", version=f"mora-kernels {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", title="commands", parser_class=Parser)
    add_demo(commands)
    add_doctor(commands)
    options = parser.parse_args(given)
    if options.command is None:
        parser.print_help()
        return 0
    try:
        options.run(options, shlex.join(["mora", *given]))
    except (ValueError, ImportError, OSError) as error:
        if options.traceback:
            raise
        print(f"mora {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mora {options.command}: interrupted", file=sys.stderr)
        return 130
    return 0


def add_demo(commands: argparse._SubParsersAction[Parser]) -> None:
    """Declare `mora demo`."""
    about = "Adapt the built-in tiny CLIP on the built-in drawings with parts missing, next to baselines."
    parser = commands.add_parser(
        "demo",
        help="the whole job on built-in data and a built-in model, in minutes on a CPU",
        description=f"{about} Writes report.md, results.json, plot.png and merged/ into a folder.",
    )
    parser.add_argument("--out", type=Path, default=None, metavar="FOLDER", help="where to write (default: demo)")
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over the training part")
    parser.add_argument("--seeds", type=int, metavar="N", help="runs per method (default: 3)")
    parser.add_argument("--rate", type=float, metavar="R", help="share of rows that lack a modality (default: 0.7)")
    parser.add_argument("--missing", metavar="KIND", help="what they lack: both, image or text (default: both)")
    parser.add_argument("--last-layers", type=int, metavar="N", help="adapted blocks per tower (default: 1)")
    parser.add_argument("--rank", type=int, metavar="R", help="rank of the adapters (default: 4)")
    parser.add_argument("--alpha", type=float, metavar="A", help="MoRA's alpha, instead of the one found on validation")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="which ones (default: all six)")
    parser.add_argument("--device", metavar="D", help="cpu (default) or cuda")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at once, a CPU thread each (default: all cores)")
    parser.add_argument("--limit", type=int, metavar="N", help="use N rows of each part only, for a quick look")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    parser.set_defaults(run=run_demo)


def add_doctor(commands: argparse._SubParsersAction[Parser]) -> None:
    """Declare `mora doctor`."""
    parser = commands.add_parser("doctor", help="what is installed, and which backend would run and why")
    parser.add_argument("--kernels", action="store_true", help="compile every Triton kernel and show its machine code")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    parser.set_defaults(run=run_doctor)


def run_doctor(options: argparse.Namespace, command: str) -> None:
    """Run `mora doctor`."""
    from mora.doctor import doctor

    print(doctor())
    if options.kernels:
        from mora_kernels.triton.report import main as report

        print()
        report([])


def run_demo(options: argparse.Namespace, command: str) -> None:
    """Run `mora demo`; ValueError, ImportError or OSError for what the user can mend."""
    from mora.demo.run import demo
    from mora.demo.settings import Settings

    names = set(Settings.__dataclass_fields__) & set(vars(options))
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    if "methods" in given:
        given["methods"] = tuple(given["methods"])
    demo(Settings(**given), command)


if __name__ == "__main__":
    sys.exit(main())
