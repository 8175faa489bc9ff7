"""How messages name things: all of a few, the first of many with a count, and nothing that a terminal would obey."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

SHOWN = 10
NAME, LONGEST, VALUE = 500, 2000, 100  # letters shown of one name, of one message, of one value


def listed(items: Iterable[object], shown: int = SHOWN) -> str:
    """`a, b, c and 12 more`, on one line whatever the items hold, each cut after `NAME` letters."""
    every = list(items)
    first = [printable(name if len(name) <= NAME else f"{name[:NAME]}...") for name in map(str, every[:shown])]
    more = len(every) - shown
    return ", ".join(first) if more <= 0 else f"{', '.join(first)} and {more:,} more"


def rows_of(numbers: Sequence[int]) -> str:
    """`row 3`, or `rows 3, 5, 8 and 12 more`."""
    return f"row{'' if len(numbers) == 1 else 's'} {listed(numbers)}"


def printable(text: str) -> str:
    """`text` on one line, safe to print: line breaks, tabs, control, escape and direction marks and lone surrogates as
    Python writes them ("\\n", "\\x1b"), the rest as it is.
    """
    return "".join(letter if letter == " " or letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def one_line(text: str) -> str:
    """A message of others on one line, safe to print, cut off where it is longer than `LONGEST`."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ... ({len(line) - LONGEST:,} characters more)"


def shown(value: object) -> str:
    """`repr(value)` on one line and cut short, also of an int of more digits than Python prints."""
    try:
        text = printable(repr(value))
    except ValueError:
        text = f"a {type(value).__name__} of thousands of digits"
    return text if len(text) <= VALUE else f"{text[:VALUE]}..."
