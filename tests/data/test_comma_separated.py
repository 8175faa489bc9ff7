"""CSV at the user's end: a stray quote never swallows rows in silence, and legal quotes and line ends all work."""

from pathlib import Path

import pytest

from mora.cli import main
from mora.data import open_dataset, splits_of
from mora.data.sources.comma_separated import columns_of
from mora.data.sources.manifest import read_manifest

HEAD = "text,label,split\n"
LINES = [f"t{i},{'ab'[i % 2]},{('train', 'train', 'validation', 'test')[i // 3]}" for i in range(12)]


def manifest(folder: Path, text: str | bytes) -> Path:
    path = folder / "m.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def texts_of(path: Path) -> list[str | None]:
    return read_manifest(path).texts


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("plain", "plain"),
        ('"red, round"', "red, round"),
        ('"say ""hi"""', 'say "hi"'),
        ('5" pipe', '5" pipe'),
        ('a "b" c', 'a "b" c'),
        ('""', None),
        ('"one\ntwo\r\nthree"', "one\ntwo\r\nthree"),
        ('"\n\nshoes, a\n"', "\n\nshoes, a\n"),
        ('"x, a,train\nbut not, b, a row"', "x, a,train\nbut not, b, a row"),
        ("\u2028\x0b\x0cü", "\u2028\x0b\x0cü"),
    ],
)
def test_what_is_legal_is_read_as_it_is(tmp_path: Path, written: str, text: str | None, mark: str, end: str) -> None:
    lines = [mark + HEAD.strip(), "first,a,train", "", f"{written},b,train", *LINES]
    labelled = read_manifest(manifest(tmp_path, end.join(lines))) if text else None
    if labelled is not None:
        assert labelled.texts[:2] == ["first", text] and len(labelled.texts) == 14
    else:
        with pytest.raises(ValueError, match="neither image nor text in row 2"):
            read_manifest(manifest(tmp_path, end.join(lines)))


@pytest.mark.parametrize(
    ("row", "written", "message"),
    [
        (2, '"t2,a,train', "line 4: a cell opens a quote that is never closed"),
        (9, 't9,b,"test', "line 11: a cell opens a quote that is never closed"),
        (0, '"t0,a,train', "line 2: a cell opens a quote that is never closed"),
        (5, 't5,"b,train', "line 7: a cell opens a quote that is never closed"),
        (3, '"t3" more,b,train', "line 5: cell 1 opens a quote, which closes in line 5 before ' more,b,train'"),
        (3, 't3, "b",train', "line 5: cell 2 has a blank before its quote"),
        (3, "t3,b", "line 5: Expected 3 columns, got 2"),
        (3, "t,3,b,train", "line 5: Expected 3 columns, got 4"),
        (3, "t\0,b,train", "line 5: got a NUL byte"),
    ],
)
def test_a_stray_quote_or_cell_is_named_by_its_line(tmp_path: Path, row: int, written: str, message: str) -> None:
    lines = [*LINES[:row], written, *LINES[row + 1 :]]
    path = manifest(tmp_path, HEAD + "\n".join(lines) + "\n")
    for read in (splits_of, lambda path: open_dataset(path, "all")):
        with pytest.raises(ValueError, match=f"m.csv: got a file that is not CSV in UTF-8 \\({message}"):
            read(path)


@pytest.mark.parametrize(
    ("first", "last"),
    [('"best t2,a,train', 'size 5",b,train'), ('"t2,a,train', 't",b,train'), ('"t2,a,train', '",b,train')],
)
def test_rows_between_two_stray_quotes_are_not_a_text(tmp_path: Path, first: str, last: str) -> None:
    """To the letter of CSV this is one row with a long text; read so, rows 3 to 5 would be gone without a word."""
    lines = [*LINES[:2], first, LINES[3], last, *LINES[5:]]
    with pytest.raises(ValueError, match=r"line 4: a cell opens a quote, and lines 4 to 6 are rows of their own"):
        open_dataset(manifest(tmp_path, HEAD + "\n".join(lines)), "all")


def test_a_stray_quote_between_quoted_cells_is_seen(tmp_path: Path) -> None:
    rows = [f'"t{i}","{"ab"[i % 2]}","train"' for i in range(6)]
    rows[2] = '"t2,"a","train"'
    with pytest.raises(ValueError, match="line 4: cell 1 opens a quote, which closes in line 4 before 'a\""):
        open_dataset(manifest(tmp_path, HEAD + "\n".join(rows)), "all")
    rows[2] = '"t2","a","train'
    with pytest.raises(ValueError, match="line 4: cell 3 opens a quote, which closes in line 5 before 't3"):
        open_dataset(manifest(tmp_path, HEAD + "\n".join(rows)), "all")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((HEAD + "\n".join(LINES)).encode("utf-16"), "line 1 is not UTF-8 (it looks like UTF-16), expected UTF-8 text"),
        (
            (HEAD + "\n".join(LINES)).encode("utf-16-le"),
            "line 1: got a NUL byte, expected text; UTF-16 without its mark",
        ),
        (b"\x1f\x8b\x08\x00" + bytes(40), "line 1 is not UTF-8 (it is gzip), expected UTF-8 text"),
        ((HEAD + "caf\xe9,a,train\n").encode("latin-1"), "line 2 is not UTF-8 (another encoding), expected UTF-8 text"),
        (b"", "got an empty file, expected a line with the names"),
    ],
)
def test_other_encodings_are_named_in_one_line(
    tmp_path: Path, data: bytes, message: str, capsys: pytest.CaptureFixture
) -> None:
    path = manifest(tmp_path, data)
    assert main(["data", "check", str(path)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error and message in error and error.count("\n") == 1


def test_a_million_columns_and_quotes_take_linear_time(tmp_path: Path) -> None:
    path = manifest(tmp_path, ",".join(f"n{i}" for i in range(100_000)) + "\n" + "," * 99_999)
    with pytest.raises(ValueError, match="got the unknown columns 'n0', .* and 99,990 more") as caught:
        read_manifest(path)
    assert len(str(caught.value)) < 2000
    with pytest.raises(ValueError, match="never closed"):
        read_manifest(manifest(tmp_path, HEAD + '"' * 999_999))
    labels = "|".join(f"c{i}" for i in range(50_000))
    assert len(read_manifest(manifest(tmp_path, f"text,label\na,{labels}\nb,c1\n")).labels[0]) == 50_000


def test_a_line_of_blanks_is_skipped_as_an_empty_one_is():
    names, cells = columns_of("a,b\n1,2\n \t \n3,4\n  ", ("a", "b"), {})
    assert names == ["a", "b"] and cells == [["1", "3"], ["2", "4"]]
