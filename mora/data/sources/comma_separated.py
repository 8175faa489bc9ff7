"""CSV, read strictly: a quote that is never closed, or a row of too few cells, is an error that names its line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import NamedTuple

LINE_END = re.compile(r"\r\n|\r|\n")
CELL_END = re.compile(r"[,\r\n]")
BLANK_QUOTE = re.compile(r"[ \t]+\"")


class Record(NamedTuple):
    """One row: the line it begins in, from 1, its cells, and its text as it is written."""

    line: int
    cells: list[str]
    written: str


def columns_of(
    text: str, wanted: Sequence[str], keys: Mapping[str, Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """The names of a table's columns, and the cells of those in `wanted`, column by column (the others' stay empty).

    Args:
        text: CSV with a line of names; cells may be in double quotes, and then hold commas, line ends and `""`.
        wanted: columns whose cells are kept.
        keys: columns with few values, and words that are values of theirs in any case. They tell where a quote that was
            not closed took whole rows into a cell; all but `"label"` and `"split"` hold paths, which count by the ends
            of their file names.

    Raises ValueError that begins with the line: a quote that is not closed, is followed by text or stands after a
    blank, a row of another number of cells, a NUL byte.
    """
    if "\0" in text:
        line = len(LINE_END.findall(text, 0, text.index("\0"))) + 1
        raise ValueError(f"line {line}: got a NUL byte, expected text; UTF-16 without its mark looks so")
    rows = records(text)
    first = next(rows, None)
    if first is None:
        return [], []
    names = first.cells
    places = [place for place, name in enumerate(names) if name in wanted]
    found: list[list[str]] = [[] for _ in names]
    long: list[Record] = []
    for row in rows:
        if len(row.cells) != len(names):
            raise ValueError(f"line {row.line}: Expected {len(names)} columns, got {len(row.cells)}")
        for place in places:
            found[place].append(row.cells[place])
        if "\n" in row.written or "\r" in row.written:
            long.append(row)
    if long:
        _refuse_swallowed(names, found, long, keys)
    return names, found


def records(text: str) -> Iterator[Record]:
    """Every row that is not an empty line or one of blanks; errors as in `columns_of`."""
    place, line = 0, 1
    while place < len(text):
        ending = LINE_END.search(text, place)
        stop, following = ending.span() if ending else (len(text), len(text))
        written, number = text[place:stop], 1
        if '"' in written:
            cells, stop, following, number = _cells(text, place, line)
            written = text[place:stop]
        else:
            cells = written.split(",")
        if written and (len(cells) > 1 or written.strip(" \t")):
            yield Record(line, cells, written)
        place, line = following, line + number


def _cells(text: str, place: int, line: int) -> tuple[list[str], int, int, int]:
    """The cells of the row at `place`, its end, where the next begins, and the number of lines it goes over."""
    cells: list[str] = []
    lines = 1
    while True:
        if text.startswith('"', place):
            cell, place = _quoted(text, place + 1, line + lines - 1)
            opened, lines = line + lines - 1, lines + len(LINE_END.findall(cell))
            if place < len(text) and text[place] not in ",\r\n":
                after = LINE_END.split(text[place : place + 80], maxsplit=1)[0][:20]
                raise ValueError(
                    f"line {opened}: cell {len(cells) + 1} opens a quote, which closes in line {line + lines - 1} "
                    f"before {after!r}, expected a comma there: a quote is not closed, or one in a text not doubled"
                )
        else:
            found = CELL_END.search(text, place)
            stop = found.start() if found else len(text)
            cell, place = text[place:stop], stop
            if BLANK_QUOTE.match(cell):
                raise ValueError(f"line {line}: cell {len(cells) + 1} has a blank before its quote, expected none")
        cells.append(cell)
        if place == len(text):
            return cells, place, place, lines
        if text[place] != ",":
            ending = LINE_END.match(text, place)
            return cells, place, ending.end() if ending else place + 1, lines
        place += 1


def _quoted(text: str, start: int, line: int) -> tuple[str, int]:
    """The cell whose quote opens before `start`, and the place behind its closing quote."""
    pieces = []
    while True:
        stop = text.find('"', start)
        if stop < 0:
            raise ValueError(f"line {line}: a cell opens a quote that is never closed, expected one at the cell's end")
        pieces.append(text[start:stop])
        if not text.startswith('""', stop):
            return "".join(pieces), stop + 1
        pieces.append('"')
        start = stop + 2


def _refuse_swallowed(
    names: Sequence[str], found: Sequence[Sequence[str]], long: Sequence[Record], keys: Mapping[str, Sequence[str]]
) -> None:
    """ValueError for a row over several lines each of which reads, by itself, as a row of the table.

    Between a stray quote and the next one in another row everything is, to the letter of CSV, one long cell.
    """
    known = {}
    for place, name in enumerate(names):
        if name in keys:
            values = [cell for cell in found[place] if "\n" not in cell and "\r" not in cell]
            known[place] = {*keys[name], *(_key(name, value) for value in values)}
    for row in long:
        lines = LINE_END.split(row.written)
        if known and all(_reads_as_row(line.split(","), names, known) for line in lines):
            raise ValueError(
                f"line {row.line}: a cell opens a quote, and lines {row.line} to {row.line + len(lines) - 1} are rows "
                "of their own that it swallows: close the quote, or double it; a text that really looks so can be "
                "written in JSONL"
            )


def _reads_as_row(cells: Sequence[str], names: Sequence[str], known: Mapping[int, set[str]]) -> bool:
    """Whether a line split at every comma is a row: an unquoted one, as those are that a stray quote swallows."""
    return len(cells) == len(names) and all(
        _key(names[place], cells[place].strip('"')) in values for place, values in known.items()
    )


def _key(name: str, value: str) -> str:
    return PurePath(value).suffix.lower() if name not in ("label", "split") else value.strip()
