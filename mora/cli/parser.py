"""The argument parser all commands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NoReturn

from mora.system.messages import one_line

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction["Parser"]


def finish(parser: Parser, actions: Commands) -> None:
    """Let every action of a command take `--traceback`, and the command by itself print its help."""
    for action in actions.choices.values():
        action.add_argument(
            "--traceback", action="store_true", default=argparse.SUPPRESS, help="show where an error came from"
        )
    parser.set_defaults(run=lambda options, command: parser.print_help())


def add_reading(parser: Parser) -> None:
    """Declare how rows are read and run: by the commands that run a model over a data set."""
    parser.add_argument("--on-broken", default="raise", metavar="W", help="raise (default) or skip unreadable images")
    parser.add_argument(
        "--data-name", metavar="N", help="mmimdb, food101 or hateful_memes, where a folder does not tell"
    )
    parser.add_argument("--extra-columns", action="store_true", help="ignore columns of a manifest that mean nothing")
    parser.add_argument("--device", default="auto", metavar="D", help="auto (default), cpu or cuda")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="rows at a time (default: 64)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read images (default: 0)")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and exit with code 2."""

    def error(self, message: str) -> NoReturn:
        """Print `mora demo: ...` and exit."""
        self.exit(2, f"{self.prog}: {one_line(message)}\n")
