"""Crafted files at the user's end: refused by name before they are opened, in bounded time and memory."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("PIL")
pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

from mora.cli import main  # noqa: E402
from mora.data import images, missing_table, open_dataset  # noqa: E402
from mora.data.table_files import read_table  # noqa: E402
from tests.data import synthetic  # noqa: E402
from tests.data.test_arrow import write  # noqa: E402

pytestmark = pytest.mark.timeout(120)  # what waits for a pipe waits for ever
needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")


def manifest(folder: Path, image: str, suffix: str = ".jsonl") -> Path:
    """Twenty rows of two classes whose second shows `image`."""
    rows = [
        {"image": f"{i}.png", "text": f"t{i}", "label": "ab"[i % 2], "split": ("train", "test")[i > 11]}
        for i in range(20)
    ]
    for row in rows:
        (folder / str(row["image"])).write_bytes(synthetic.picture(0, 0, "PNG"))
    rows[1]["image"] = image
    rows[2]["split"] = rows[3]["split"] = "validation"
    path = folder / f"m{suffix}"
    synthetic.write_manifest(path, rows)
    return path


def irregular(folder: Path, kind: str) -> str:
    """A path in `folder` that is no regular file."""
    name = "odd.png"
    if kind.startswith("pipe"):
        os.mkfifo(folder / "pipe")
        if kind == "pipe":
            return "pipe"
        (folder / name).symlink_to("pipe")
    elif kind == "device":
        return "/dev/zero"
    elif kind == "link to a device":
        (folder / name).symlink_to("/dev/zero")
    elif kind == "folder":
        (folder / name).mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as opened:
            here = Path.cwd()
            os.chdir(folder)  # a socket's path has 108 bytes at most
            opened.bind(name)
            os.chdir(here)
    elif kind == "here":
        return "."
    elif kind == "large":
        with (folder / name).open("wb") as file:
            file.truncate(images.LARGEST_IMAGE + 1)
    return name


KINDS = {
    "pipe": "which is a pipe", "pipe behind a link": "which is a pipe", "device": "which is a device",
    "link to a device": "which is a device", "folder": "which is a folder", "socket": "which is a socket",
    "here": "which is a folder", "large": "of 268,435,457 bytes, expected at most 268,435,456",
}  # fmt: skip


@needs_pipes
@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_is_no_regular_file_is_refused_before_it_is_opened(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture
) -> None:
    path = manifest(tmp_path, irregular(tmp_path, kind))
    with pytest.raises(ValueError, match=r"1 of 10 image files cannot be read: row 2: ") as caught:
        open_dataset(path, "train")
    assert KINDS[kind] in str(caught.value)
    with pytest.warns(UserWarning, match="left out 1 images: row 2: "):
        assert len(open_dataset(path, "train", on_broken="skip")) == 9
    assert main(["data", "check", str(path)]) == 2
    out = capsys.readouterr().out
    assert "images that cannot be read (1):" in out and KINDS[kind] in out


@needs_pipes
@pytest.mark.parametrize("name", ["m.csv", "m.jsonl", "m.parquet"])
def test_a_manifest_that_is_no_regular_file_is_not_opened(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"source: got .*{name}, a file of another kind"):
        open_dataset(tmp_path / name, "train")
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=f"source: got .*{name}, a file of another kind"):
        open_dataset(tmp_path / name, "train")


@needs_pipes
def test_tables_and_saved_folders_that_are_no_regular_files_are_not_opened(tmp_path: Path) -> None:
    for name in ("mmimdb_train_missing_both_07.pt", "t.safetensors"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name}, which is a pipe, expected a regular file"):
            read_table(tmp_path / name)
    pytest.importorskip("datasets")
    for strange, message in (("../x.arrow", "got the files '../x.arrow'"), ("pipe", "which is a pipe")):
        folder = tmp_path / strange.strip("./")
        folder.mkdir()
        os.mkfifo(folder / "pipe")
        (folder / "dataset_info.json").write_text("{}")
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": strange}], "_split": None}))
        with pytest.raises(ValueError, match=message):
            open_dataset(folder, "train")
    os.mkfifo(tmp_path / "pipe" / "dataset_dict.json")
    with pytest.raises(ValueError, match=r"dataset_dict.json, which is a pipe"):
        open_dataset(tmp_path / "pipe", "train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "a\\u0000.png", "label": "a"}', "got a NUL in image of row 2, expected a path: 'a\\\\x00.png'"),
        ('{"text": "half \\ud800", "label": "a"}', "got half a character ('\\ud800') in text of row 2, expected text"),
        ('{"image": "\\ud800.png", "label": "a"}', "got half a character ('\\ud800') in image of row 2"),
        ('{"text": "t", "label": "\\udfff"}', "got half a character ('\\udfff') in label of row 2"),
        (f'{{"text": "t", "label": {"9" * 5000}}}', "line 2: got a number of too many digits"),
        ('{"text": "t", "text": "u", "label": "a"}', "line 2: got 'text' twice in one object"),
        ('{"text": "t", "label": [["a"]]}', "got label of type list of list in line 2"),
        ('{"text": "t", "label": "a"', "line 2: got text that is not JSON"),
        ('{"text": "t", "label": "a"} {"text": "u"', "line 2: got text that is not JSON (Extra data"),
        ("[" * 100_000, "line 2: got JSON nested 100,000 deep, expected at most 64"),
    ],
)
def test_lines_of_json_that_are_no_rows_name_file_line_and_field(
    tmp_path: Path, line: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"text": "one", "label": "b"}\n' + line + "\n")
    assert main(["data", "check", str(path)]) == 2
    error = capsys.readouterr().err
    assert (
        str(path) in error and message.replace("\\\\", "\\") in error and error.count("\n") == 1 and len(error) < 1000
    )


def test_the_same_keys_of_every_row_take_linear_time(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"text": f"t{i}", "label": "a", f"x{i}": 1}) + "\n" for i in range(10_000)))
    assert len(open_dataset(path, "all", extra_columns=True, classes=("a",))) == 10_000
    rows = "".join(json.dumps({"text": f"t{i}", "label": f"c{i % 4000}"}) + "\n" for i in range(20_000))
    path.write_text(rows)  # before: 20,000 x 4,000
    assert len(open_dataset(path, "all", classes=[f"c{i}" for i in range(4000)])) == 20_000


def test_labels_beyond_memory_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    labels = "|".join(f"c{i}" for i in range(30_000))
    path.write_text("text,label\n" + f"a,{labels}\n" + "b,c1\n" * 40_000)
    with pytest.raises(
        ValueError, match="got 40,001 rows of 30,000 classes each, expected at most 1,073,741,824 labels"
    ):
        open_dataset(path, "all")
    root = write(tmp_path / "own" / "train.arrow", {"image": [b"a"] * 2, "text": [["a"]] * 2, "label": [0, 2**62]})
    with pytest.raises(ValueError, match=r"got the label 4,611,686,018,427,387,904, expected at most 1,048,575"):
        open_dataset(root, "train")


def damaged(whole: bytes) -> list[bytes]:
    """A file cut at many places, and with bytes turned at many others."""
    cut = [whole[: len(whole) * part // 12] for part in range(1, 12)]
    turned = []
    for place in range(4, len(whole) - 4, max(1, len(whole) // 25)):
        changed = bytearray(whole)
        changed[place] ^= 0xFF
        turned.append(bytes(changed))
    return cut + turned


def why_not(read: Callable[[], object]) -> str | None:
    """The message of the ValueError that `read` raises; None when it raises nothing."""
    try:
        read()
    except ValueError as error:
        return str(error)
    return None


OPEN = """
import sys
from mora.data import open_dataset
try:
    for index in range(len(data := open_dataset(sys.argv[1], "train"))):
        data[index]
except ValueError as error:
    assert sys.argv[2] in str(error), error
"""


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_damaged_table_is_an_error_that_names_it(tmp_path: Path, kind: str) -> None:
    path = manifest(tmp_path, "1.png", ".parquet")
    if kind == "arrow":
        path = synthetic.arrow(tmp_path, "hateful_memes", (6, 2, 2)) / "train.arrow"
    whole = path.read_bytes()
    source = path if kind == "parquet" else path.parent
    refused = 0
    for content in damaged(whole):
        path.write_bytes(content)
        if (reason := why_not(lambda: [*map(open_dataset(source, "train").__getitem__, range(6))])) is not None:
            # A turned byte may also be a picture's, a label's, or mean nothing.
            assert str(path) in reason or "row" in reason or "label" in reason
            refused += 1
    assert refused >= 11
    path.write_bytes(whole)
    assert open_dataset(source, "train")[0].image is not None


def test_offsets_that_point_out_of_a_file_are_not_followed(tmp_path: Path) -> None:
    """In a process of its own: before, a look at such a column could end it by a signal."""
    root = synthetic.arrow(tmp_path, "hateful_memes", (6, 2, 2))
    table = pa.ipc.open_file(str(root / "train.arrow")).read_all()
    offsets = pa.py_buffer(b"".join(int(n).to_bytes(4, "little") for n in (0, 5, 2**31 - 1, 7, 8, 9, 10)))
    wrong = pa.Array.from_buffers(pa.binary(), 6, [None, offsets, pa.py_buffer(b"0123456789")])
    write(root / "train.arrow", table.set_column(0, "image", wrong))
    command = [sys.executable, "-c", OPEN, str(root), str(root / "train.arrow")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [1, 2], "text": [["a"]] * 2, "label": [0, 1]}, "got image of type int64, expected binary"),
        ({"image": [b"a"] * 2, "text": [[1], [2]], "label": [0, 1]}, "got text of type list<.*int64>, expected string"),
        ({"image": [b"a"] * 2, "text": [["a"]] * 2, "label": [0.5, 1.0]}, "got labels of type double, expected int64"),
        ({"image": [b"a"] * 2, "text": [["a"]] * 2, "label": [{"a": 1}] * 2}, "got labels of type struct"),
    ],
)
def test_columns_of_other_types_are_named(tmp_path: Path, columns: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_dataset(write(tmp_path / "own" / "train.arrow", columns), "train")


def test_parquet_of_other_types_or_vast_sizes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.parquet"
    for label, message in (
        (pa.array([b"a", b"b"]), "got label of type binary, expected string, a number, or a list of these"),
        (pa.array([[["a"]], [["b"]]]), "got label of type list<.*list<.*string>>"),
    ):
        parquet.write_table(pa.table({"text": ["a", "b"], "label": label}), path)
        with pytest.raises(ValueError, match=f"{path}: {message}"):
            open_dataset(path, "all")
    table = pa.table({"text": pa.nulls(5_000_000), "label": pa.nulls(5_000_000)})
    parquet.write_table(table, path)
    assert path.stat().st_size < 1 << 17
    monkeypatch.setattr("mora.data.sources.columns.MOST_ROWS", 4_000_000)
    with pytest.raises(ValueError, match=r"damaged Parquet file \(5,000,000 rows of .* bytes, expected at most"):
        open_dataset(path, "all")


PUBLISHED = "mmimdb_train_missing_both_07.pt"
TABLE = missing_table(24, 0.7, "both", 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(1).expand(2**40), r"got a tensor of shape \[1099511627776\] .*all in the file"),
        (TABLE.to_sparse(), r"got a tensor of shape \[24\] \(sparse_coo float32 on cpu"),
        (torch.zeros(24, device="meta"), r"got a tensor of shape \[24\] \(strided float32 on meta"),
        (TABLE.to(torch.float8_e4m3fn), r"\(strided float8_e4m3fn on cpu"),
        (TABLE.to(torch.complex64), r"\(strided complex64 on cpu"),
        ({1: TABLE}, "got dict, expected a tensor of shape"),
        ([TABLE], "got list, expected a tensor of shape"),
        (torch.quantize_per_tensor(TABLE, 1.0, 0, torch.quint8), "quint8|refuses"),
        (torch.nn.Parameter(TABLE), ""),
    ],
)
def test_published_tables_that_are_no_plain_tensor_are_named(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / PUBLISHED
    torch.save(content, path)
    if not message:
        assert torch.equal(read_table(path).values, TABLE)
        return
    with pytest.raises(ValueError, match=message) as caught:
        read_table(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_cut_or_turned_published_tables_are_named(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / PUBLISHED
    torch.save(TABLE, path, _use_new_zipfile_serialization=zipped)
    for content in damaged(path.read_bytes()):
        path.write_bytes(content)
        assert str(path) in (why_not(lambda: read_table(path)) or str(path))
    path = tmp_path / "mmimdb_train_missing_both_1.2.3.pt"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"_1.2.3.pt: got a missing table of this name \(could not convert"):
        read_table(path)
