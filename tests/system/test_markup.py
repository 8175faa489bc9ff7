"""Names from data in Markdown and spreadsheets: shown as they are, never obeyed."""

import csv
import io

import pytest

from mora.evaluation.tables import Table
from mora.system.markup import cell, code, plain
from mora.system.messages import LONGEST, one_line, printable

NASTY = ["a\nb", "a\tb", "\x1b[31mred", "\u202eevil", "[red]x[/red]", "x|y", "`z`", "<b>", "**bold**", "\ud800", "\x00"]


@pytest.mark.parametrize("name", NASTY)
def test_every_form_is_one_line_that_prints(name):
    for form in (printable, plain, code, cell, one_line):
        shown = form(name)
        assert shown.isprintable() and len(shown.splitlines()) == 1
        shown.encode()


def test_markdown_reads_a_name_as_it_is_written():
    assert plain("plain_name, 70 % (a.b)") == "plain_name, 70 % (a.b)"
    assert plain("_x_ [a](b) <i> | `c`") == r"\_x\_ \[a\](b) \<i\> \| \`c\`"
    assert code("a`b") == "``a`b``" and code("`") == "`` ` ``" and code("") == "`  `" and code("a") == "`a`"


def test_a_table_keeps_its_columns():
    table = Table("t", ["a|b", "c"], [["x | y\nz", "1"], ["**", "2"]], {(1, 1)}).markdown()
    lines = table.splitlines()
    assert len(lines) == 4
    assert all(line.replace(r"\|", "").count("|") == 3 for line in lines)
    assert lines[-1] == r"| \*\* | **2** |"


def test_a_spreadsheet_computes_nothing():
    assert [cell(name) for name in ("=1+1", "+1", "-1", "@a", "a=1")] == ["'=1+1", "'+1", "'-1", "'@a", "a=1"]
    text = io.StringIO()
    csv.writer(text).writerow([cell(name) for name in NASTY])
    assert len(text.getvalue().splitlines()) == 1


def test_a_long_message_is_cut():
    assert one_line("a  b\nc") == "a b c"
    assert one_line("x" * (LONGEST + 5)) == "x" * LONGEST + " ... (5 characters more)"
