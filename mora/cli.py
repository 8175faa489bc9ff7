"""The command `mora`: one file in `mora/commands/` per subcommand, each importing what it needs when it runs."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Sequence

from mora.commands import data, demo, doctor, evaluate, merge, predict, train
from mora.commands.parser import Parser
from mora.system.signals import heard
from mora.version import __version__

COMMANDS = (demo, data, train, evaluate, predict, merge, doctor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors of the user are one line on stderr and exit code 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = Parser(prog="mora", description="Adapt a CLIP to samples that lack their image or their text.")
    parser.add_argument("--version", action="version", version=f"mora-kernels {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", title="commands", parser_class=Parser)
    for command in COMMANDS:
        command.add(commands)
    for declared in commands.choices.values():
        declared.add_argument("--traceback", action="store_true", default=False, help="show where an error came from")
    options = parser.parse_args(given)
    if options.command is None:
        parser.print_help()
        return 0
    try:
        with heard():
            options.run(options, shlex.join(["mora", *given]))
    except BrokenPipeError:  # `mora ... | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, ImportError, OSError) as error:
        if options.traceback:
            raise
        print(f"mora {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        if not getattr(error, "told", False):
            print(f"mora {options.command}: {error or 'interrupted'}", file=sys.stderr)
        return 128 + getattr(error, "number", signal.SIGINT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
