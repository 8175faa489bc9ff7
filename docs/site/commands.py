"""docs/commands.md: `<!-- command: mora train -->` becomes what the real parser knows of that command.

A command that the page does not show, and one that it shows and does not exist, is a warning: an error of the build.
"""

import argparse
import re
from collections.abc import Iterator
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.logging import getLogger

from mora.cli import make_parser

PAGE = "docs/commands"
MARK = re.compile(r"^<!-- command: (.+?) -->$", re.M)
WIDTH = 92  # of the lines of a usage
log = getLogger(__name__)


def parsers() -> Iterator[argparse.ArgumentParser]:
    """Every command's parser, `mora data check`'s among them; those that only group others are not."""
    waiting: list[argparse.ArgumentParser] = [make_parser()]
    while waiting:
        parser = waiting.pop(0)
        below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        waiting += [child for action in below for child in action.choices.values()]
        if not below:
            yield parser


def fill(app: Sphinx, page: str, source: list[str]) -> None:
    """Put every command's description and options in the place of its mark."""
    if page != PAGE:
        return
    known = {parser.prog: parser for parser in parsers()}
    marked = MARK.findall(source[0])
    for name in sorted(known.keys() ^ {*marked}):
        what = "no mark" if name in known else "a mark of no command"
        log.warning("%s.md: got %s, <!-- command: %s -->, expected one for each command", page, what, name)
    source[0] = MARK.sub(lambda mark: described(known[mark[1]]) if mark[1] in known else "", source[0])


def described(parser: argparse.ArgumentParser) -> str:
    """Markdown of one command: what it does, its usage, a table of options a group, its examples."""
    usage = argparse.HelpFormatter(parser.prog, width=WIDTH)
    usage.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups, prefix="")
    parts = [plain(parser.description or ""), f"```text\n{usage.format_help().strip()}\n```"]
    for group in parser._action_groups:
        rows = [row(action) for action in group._group_actions if not isinstance(action, argparse._HelpAction)]
        if rows:
            parts.append(
                "| " + (group.title or "").replace("positional arguments", "arguments") + " | |\n| --- | --- |"
            )
            parts[-1] = "\n".join([parts[-1], *rows])
    if parser.epilog:
        parts.append(f"```text\n{parser.epilog}\n```")
    return "\n\n".join(part for part in parts if part)


def row(action: argparse.Action) -> str:
    """One argument as a row of its table."""
    default = action.metavar or action.dest
    formatter = argparse.HelpFormatter("mora")
    values = formatter._format_args(action, default if isinstance(default, str) else action.dest)
    names = [f"`{name} {values}`".replace(" `", "`") for name in action.option_strings] or [f"`{values}`"]
    needed = "; needed" if action.required and action.option_strings else ""
    about = formatter._expand_help(action) if action.help else ""
    return f"| {', '.join(names)} | {plain(about)}{needed} |"


def plain(text: str) -> str:
    """What a terminal shows, letter by letter, in Markdown."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(text.split()))


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("source-read", fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
