"""How messages name things: all of a few, the first of many with a count, and nothing that a terminal would obey."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines of columns as wide as their widest cell, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def printable(text: str) -> str:
    """`text` on one line, safe to print: line breaks, tabs, control, escape and direction marks and lone surrogates as
    Python writes them ("\\n", "\\x1b"), the rest as it is.
    """
    return "".join(letter if letter == " " or letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def one_line(text: str) -> str:
    """A message of others on one line, safe to print, cut off where it is longer than `LONGEST`."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ... ({len(line) - LONGEST:,} characters more)"


class Short(reprlib.Repr):
    """`repr` of the beginning of a value: a list that names another twice, and so on, has 2^depth letters in full."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        # An item takes three letters at least: past these nothing would be shown.
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = self.maxdeque = VALUE // 3 + 1
        self.maxother = 100 * VALUE

    def repr_str(self, x: str, level: int) -> str:
        return repr(x[: VALUE + 1])

    def repr_int(self, x: int, level: int) -> str:
        return repr(x)

    def repr_dict(self, x: Mapping[Any, Any], level: int) -> str:
        """In the order of `x`, which reprlib would sort."""
        if level <= 0 and x:
            return "{...}"
        pairs = zip(range(self.maxdict), x.items(), strict=False)
        pieces = [f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}" for _, (key, value) in pairs]
        return f"{{{', '.join(pieces + ['...'] * (len(x) > len(pieces)))}}}"

    def repr_instance(self, x: Any, level: int) -> str:
        if isinstance(x, dict):
            return self.repr_dict(x, level)
        if isinstance(x, (list, tuple)):
            return self.repr1(tuple(x), level)
        return super().repr_instance(x, level)


SHORT = Short()


def shown(value: object) -> str:
    """`repr(value)` on one line and cut short, three levels of it, also of an int of more digits than Python prints."""
    try:
        text = printable(SHORT.repr(value))
    except ValueError:
        text = f"a {type(value).__name__} of thousands of digits"
    return text if len(text) <= VALUE else f"{text[:VALUE]}..."
