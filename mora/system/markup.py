"""Names from data inside Markdown and spreadsheets: shown as they are, never obeyed."""

from __future__ import annotations

import re

from mora.system.messages import printable

# What Markdown or HTML would act on inside a line; "_" within a word does nothing.
SPECIAL = re.compile(r"[\\`*\[\]<>|~#&$]|(?<!\w)_|_(?!\w)")
FORMULA = ("=", "+", "-", "@")


class Markdown(str):
    """Markdown already, which `plain` leaves as it is."""


def plain(text: str) -> str:
    """`text` on one line of Markdown, in a table or out of it, read as it is written."""
    if isinstance(text, Markdown):
        return text
    return SPECIAL.sub(r"\\\g<0>", printable(text))


def code(text: str) -> str:
    """`text` as a code span of Markdown, outside of tables."""
    shown = printable(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    room = " " if not shown or "`" in (shown[0], shown[-1]) else ""
    return f"{fence}{room}{shown}{room}{fence}"


def cell(text: str) -> str:
    """`text` in a CSV: on one line, and after an apostrophe where a spreadsheet would take it for a formula."""
    shown = printable(text)
    return f"'{shown}" if shown.startswith(FORMULA) else shown
