"""The command `mora`: a file per subcommand, in which `add` declares arguments and `run` imports what it needs."""

from __future__ import annotations

import argparse
import io
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from mora.cli import adapters, data, demo, doctor, embed, evaluate, inspect, merge, predict, sweep, to_peft, train
from mora.cli.parser import Parser
from mora.system.messages import one_line
from mora.system.signals import heard
from mora.version import __version__

# RuntimeError: what torch and the kernels say, in words, of devices and memory.
FORESEEN = (ValueError, ImportError, OSError, RuntimeError)
COMMANDS = (demo, data, train, sweep, inspect, evaluate, embed, predict, merge, to_peft, adapters, doctor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors of the user are one line on stderr and exit code 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    speak_any_encoding()
    parser = make_parser()
    options = parser.parse_args(given)
    if options.command is None:
        parser.print_help()
        return 0
    try:
        refuse_nul(options)
        with heard():
            options.run(options, shlex.join(["mora", *given]))
    except BrokenPipeError:  # `mora ... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if options.traceback:
            raise
        print(f"mora {options.command}: {in_words(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        if not getattr(error, "told", False):
            print(f"mora {options.command}: {error or 'interrupted'}", file=sys.stderr)
        return 128 + getattr(error, "number", signal.SIGINT)
    except BaseException as error:
        if options.traceback or type(error).__name__ != "PanicException":  # of pyo3, whose class nothing exports
            raise
        print(f"mora {options.command}: {in_words(error)}", file=sys.stderr)
        return 2
    return 0


def make_parser() -> Parser:
    """The parser of `mora` with every subcommand, which docs/commands.md is made from."""
    parser = Parser(prog="mora", description="Adapt a CLIP to samples that lack their image or their text.")
    parser.add_argument("--version", action="version", version=f"mora-kernels {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", title="commands", parser_class=Parser)
    for command in COMMANDS:
        command.add(commands)
    for declared in commands.choices.values():
        declared.add_argument("--traceback", action="store_true", default=False, help="show where an error came from")
    return parser


def speak_any_encoding() -> None:
    """Let stdout and stderr write what their encoding lacks as "\\u2713": no answer is lost to a pipe's code page."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def refuse_nul(options: argparse.Namespace) -> None:
    """ValueError for an option with a NUL, which is in no path and in no text."""
    for name, value in vars(options).items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, (str, Path)) and "\0" in str(one):
                raise ValueError(f"{name}: got {str(one)!r}, which has a NUL character, expected none")


def in_words(error: BaseException) -> str:
    """An error on one line; one that this library did not foresee begins with its kind."""
    text = one_line(str(error))
    if isinstance(error, FORESEEN) and text:
        return text
    return f"{type(error).__name__}: {text or 'no message'} (--traceback shows where)"
