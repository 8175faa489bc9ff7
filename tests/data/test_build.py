"""Builders: what they write reads like the official files; every broken file is named; a second run goes on."""

import json
from pathlib import Path

import pytest

pytest.importorskip("PIL")
pa = pytest.importorskip("pyarrow")

from mora.data import open_dataset, splits_of  # noqa: E402
from mora.data.builders import build, write  # noqa: E402
from tests.data import synthetic  # noqa: E402

NAMES = tuple(synthetic.ROOTS)


def table(path: Path) -> "pa.Table":
    return pa.ipc.open_file(str(path)).read_all()


def run(name: str, raw: Path, out: Path, **options: bool) -> list[str]:
    lines: list[str] = []
    build(name, raw, out, accept_counts=True, report=lines.append, **options)
    return lines


@pytest.mark.parametrize("name", NAMES)
def test_the_files_equal_the_official_ones(tmp_path: Path, name: str) -> None:
    official, out = synthetic.arrow(tmp_path, name), tmp_path / "out"
    lines = run(name, synthetic.raw(tmp_path, name), out)
    assert lines == ["train: 24 images written", "validation: 8 images written", "test: 8 images written"]
    for file in ("train.arrow", "val.arrow", "test.arrow"):
        expected, got = table(official / file), table(out / file)
        assert set(got.column_names) == set(expected.column_names)
        assert got.select(expected.column_names).to_pydict() == expected.to_pydict()
        assert {field.name: field.type for field in got.schema} == {field.name: field.type for field in expected.schema}
    assert sorted(path.name for path in out.iterdir()) == ["dataset.json", "test.arrow", "train.arrow", "val.arrow"]
    for split in splits_of(out):
        ours, theirs = open_dataset(out, split), open_dataset(official, split)
        assert ours.fingerprint == theirs.fingerprint
        assert (ours.name, ours.metric) == (name, theirs.metric)
    assert open_dataset(out, "train").classes[:1] == (
        {"mmimdb": "Drama", "food101": "food_000", "hateful_memes": "not hateful"}[name],
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mmimdb", "15,552 / 2,608 / 7,799"),
        ("food101", "61,142 / 6,846 / 22,716"),
        ("hateful_memes", "8,500 / 500 / 1,000"),
    ],
)
def test_other_counts_are_refused_with_both_numbers(tmp_path: Path, name: str, expected: str) -> None:
    raw = synthetic.raw(tmp_path, name)
    with pytest.raises(ValueError, match=f"got 24 / 8 / 8 images in train .* expected {expected}, as published"):
        build(name, raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def damage(name: str, raw: Path) -> list[Path]:
    """Break files of train: one absent, one cut, one that is text; the paths."""
    images = [path for path in sorted(raw.rglob("*.*")) if path.suffix in (".jpeg", ".jpg", ".png")]
    train = {"mmimdb": images[:24], "food101": images[-32:], "hateful_memes": images[:24]}[name]
    if name == "food101":
        listing = set(json.loads((raw / "split.json").read_text())["train"])
        train = [path for path in train if path.name in listing]
    train[1].unlink()
    train[3].write_bytes(train[3].read_bytes()[:200])
    train[5].write_text("not an image")
    return [train[1], train[3], train[5]]


@pytest.mark.parametrize("name", NAMES)
def test_every_broken_file_is_named_and_the_other_splits_are_written(tmp_path: Path, name: str) -> None:
    raw, out = synthetic.raw(tmp_path, name), tmp_path / "out"
    broken = damage(name, raw)
    with pytest.raises(ValueError, match="3 files are missing or broken") as caught:
        run(name, raw, out)
    message = str(caught.value)
    for path in broken:
        assert str(path) in message
        assert str(path) in (out / "broken.txt").read_text()
    assert "train: not written, 3 files missing or broken; validation: 8 images written; test: 8 images w" in message
    assert "--skip-broken" in message
    assert splits_of(out) == ("validation", "test")

    lines = run(name, raw, out, skip_broken=True)
    assert lines[0] == "train: 21 images written, 3 broken left out"
    assert len((out / "broken.txt").read_text().splitlines()) == 3
    assert len(json.loads((out / "dataset.json").read_text())["splits"]["train"]["left_out"]) == 3
    assert open_dataset(out, "train").rows == 21


@pytest.mark.parametrize("name", NAMES)
def test_a_second_run_keeps_what_is_done_and_unchanged(tmp_path: Path, name: str) -> None:
    raw, out = synthetic.raw(tmp_path, name), tmp_path / "out"
    run(name, raw, out)
    before = (out / "train.arrow").stat().st_mtime_ns
    assert run(name, raw, out) == [
        f"{s}: {n} images, unchanged" for s, n in zip(splits_of(out), (24, 8, 8), strict=True)
    ]
    assert (out / "train.arrow").stat().st_mtime_ns == before
    image = next(iter(sorted(raw.rglob("*2000*.*g"))))  # a picture of test
    image.write_bytes(synthetic.picture(1, 9, "PNG"))
    (out / "val.arrow").write_bytes(b"cut")
    lines = run(name, raw, out)
    assert lines == ["train: 24 images, unchanged", "validation: 8 images written", "test: 8 images written"]


def test_a_long_list_is_shortened_in_the_message_and_whole_in_the_file(tmp_path: Path) -> None:
    raw, out = synthetic.raw(tmp_path, "hateful_memes"), tmp_path / "out"
    for path in (raw / "img").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="40 files are missing or broken: .* and 30 more; all are in .*broken.txt"):
        run("hateful_memes", raw, out)
    assert len((out / "broken.txt").read_text().splitlines()) == 40
    assert not list(out.glob("*.arrow")) and not list(out.glob(".*"))


def test_food_without_a_title_is_left_out_and_counted(tmp_path: Path) -> None:
    raw, out = synthetic.raw(tmp_path, "food101"), tmp_path / "out"
    lines = (raw / "texts" / "train_titles.csv").read_text().splitlines()
    (raw / "texts" / "train_titles.csv").write_text("\n".join(lines[2:]))
    assert run("food101", raw, out)[0] == "train: 22 images written, 2 without a text left out"
    assert json.loads((out / "dataset.json").read_text())["splits"]["train"]["without_text"] == [
        "food_000_0.jpg", "food_001_1.jpg",
    ]  # fmt: skip


def test_food_reads_text_json_and_titles_with_commas(tmp_path: Path) -> None:
    raw = synthetic.raw(tmp_path, "food101")
    (raw / "texts" / "train_titles.csv").write_text("food_000_0.jpg,Apples, baked, with honey,food_000\n")
    run("food101", raw, tmp_path / "out")
    assert table(tmp_path / "out" / "train.arrow")["text"].to_pylist() == [["Apples, baked, with honey"]]
    (raw / "text.json").write_text(json.dumps({"food_000_0.jpg": "one", "food_001_1.jpg": ["two", "three"]}))
    run("food101", raw, tmp_path / "out")
    assert table(tmp_path / "out" / "train.arrow")["text"].to_pylist() == [["one"], ["two", "three"]]


def test_broken_labels_are_named_with_the_images(tmp_path: Path) -> None:
    raw = synthetic.raw(tmp_path, "mmimdb")
    (raw / "labels" / "0000000.json").write_text("{")
    (raw / "labels" / "0000001.json").unlink()
    (raw / "labels" / "0000002.json").write_text('{"plot": 3, "genres": []}')
    (raw / "images" / "0000003.jpeg").unlink()
    with pytest.raises(ValueError, match="4 files are missing or broken") as caught:
        run("mmimdb", raw, tmp_path / "out")
    for part in ("0000000.json: got text that is not JSON", "0000001.json: no such file",
                 "0000002.json: no list of texts under 'plot'", "0000003.jpeg: no such file"):  # fmt: skip
        assert part in str(caught.value)

    raw = synthetic.raw(tmp_path, "hateful_memes")
    lines = (raw / "dev.jsonl").read_text().splitlines()
    lines[0] = '{"id": 1, "img": "../secret.png", "label": 0, "text": "a"}'
    lines[1] = '{"id": 1, "img": "img/01001.png", "text": "a"}'
    lines[2] = "{"
    (raw / "dev.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="3 files are missing or broken") as caught:
        run("hateful_memes", raw, tmp_path / "out2")
    for part in ("line 1: img is '../secret.png'", "line 2: label is None, expected 0 or 1 .*", "line 3: "):
        assert part.rstrip(".*") in str(caught.value)


def test_seen_files_are_preferred(tmp_path: Path) -> None:
    raw = synthetic.raw(tmp_path, "hateful_memes")
    (raw / "test.jsonl").rename(raw / "test_seen.jsonl")
    (raw / "test.jsonl").write_text('{"id": 1, "img": "img/00000.png", "text": "no label"}\n')
    assert run("hateful_memes", raw, tmp_path / "out")[2] == "test: 8 images written"


def test_listings_that_are_absent_or_repeat_a_sample_are_named(tmp_path: Path) -> None:
    raw = synthetic.raw(tmp_path, "mmimdb")
    listing = json.loads((raw / "split.json").read_text())
    (raw / "split.json").write_text(json.dumps({**listing, "test": [*listing["test"], "0000000"]}))
    with pytest.raises(ValueError, match=r"got 1 samples twice: 0000000 \(train, test\); expected each in one split"):
        run("mmimdb", raw, tmp_path / "out")
    (raw / "split.json").write_text(json.dumps({"train": []}))
    with pytest.raises(ValueError, match="got the splits train, expected validation, test too"):
        run("mmimdb", raw, tmp_path / "out")
    (raw / "split.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"split.json: got no such file, expected the lists of samples by split"
    ):
        run("mmimdb", raw, tmp_path / "out")
    raw = synthetic.raw(tmp_path, "food101")
    (raw / "texts" / "train_titles.csv").unlink(), (raw / "texts" / "test_titles.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"got neither text.json nor texts/\*.csv"):
        run("food101", raw, tmp_path / "out")
    (raw / "class_idx.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"class_idx.json: got no such file, expected the number of each class"):
        run("food101", raw, tmp_path / "out")
    raw = synthetic.raw(tmp_path, "hateful_memes")
    (raw / "dev.jsonl").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"got no dev_seen.jsonl or dev.jsonl, expected the memes of validation"
    ):
        run("hateful_memes", raw, tmp_path / "out")
    with pytest.raises(ValueError, match="name: got 'imdb', expected one of mmimdb, food101, hateful_memes"):
        build("imdb", raw, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="raw: got .*nowhere, no such folder"):
        build("mmimdb", tmp_path / "nowhere", tmp_path / "out")


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_what_is_done_is_said_when_writing_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    raw, out = synthetic.raw(tmp_path, "food101"), tmp_path / "out"

    def stop(path: Path, split: str, *rest: object, **options: object) -> object:
        if split == "validation":
            raise error
        return write.write_split(path, split, *rest, **options)

    monkeypatch.setattr("mora.data.builders.run.write_split", stop)
    account = "train: 24 images written; validation: not written; test: not written; the same command goes on from here"
    lines: list[str] = []
    with pytest.raises(type(error)) as caught:
        build("food101", raw, out, accept_counts=True, report=lines.append)
    assert account in (str(caught.value) if isinstance(error, OSError) else lines[-1])
    monkeypatch.undo()
    assert run("food101", raw, out)[0] == "train: 24 images, unchanged"
    assert splits_of(out) == ("train", "validation", "test")


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    raw, out = synthetic.raw(tmp_path, "food101"), tmp_path / "out"
    out.mkdir()
    (out / ".train.arrow.0123456789abcdef").write_bytes(b"half")
    run("food101", raw, out)
    assert not list(out.glob(".*"))


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    raw, out = synthetic.raw(tmp_path, "food101"), synthetic.arrow(tmp_path, "food101")
    before = (out / "train.arrow").read_bytes()
    with pytest.raises(
        ValueError, match=r"out: got .*Food101 with test.arrow, train.arrow, val.arrow of unknown origin"
    ):
        run("food101", raw, out)
    assert (out / "train.arrow").read_bytes() == before
    run("food101", raw, tmp_path / "out")
    with pytest.raises(ValueError, match="out: got .*out with food101 in format 1, expected a new folder"):
        run("mmimdb", synthetic.raw(tmp_path, "mmimdb"), tmp_path / "out")


@pytest.mark.timeout(120)
def test_pictures_and_listings_that_are_no_regular_files_are_not_opened(tmp_path: Path) -> None:
    raw = synthetic.raw(tmp_path, "hateful_memes")
    picture = raw / "img" / "00000.png"
    picture.unlink()
    picture.symlink_to("/dev/zero")
    lines = (raw / "train.jsonl").read_text().splitlines()
    lines[1] = '{"id": 1, "img": "img/\\u0000.png", "label": 0, "text": "a"}'
    lines[2] = '{"id": 1, "img": "img/00002.png", "label": true, "text": "a"}'
    lines[3] = '{"id": 1, "img": "img/00003.png", "label": 0, "text": "\\ud800"}'
    lines[4] = "[" * 1000
    (raw / "train.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="5 files are missing or broken") as caught:
        run("hateful_memes", raw, tmp_path / "out")
    for part in ("00000.png: path: got", "which is a device", "line 2: img is 'img/\\x00.png'", "line 3: label is True",
                 "line 4: text holds half a character", "line 5: JSON: got JSON nested 1,000 deep"):  # fmt: skip
        assert part in str(caught.value)
    raw = synthetic.raw(tmp_path, "food101")
    (raw / "split.json").unlink()
    (raw / "split.json").symlink_to("/dev/zero")
    with pytest.raises(FileNotFoundError, match=r"split.json: got no such file"):
        run("food101", raw, tmp_path / "food")


def test_a_title_that_takes_in_other_lines_is_named(tmp_path: Path) -> None:
    raw = synthetic.raw(tmp_path, "food101")
    path = raw / "texts" / "train_titles.csv"
    lines = path.read_text().splitlines()
    name, kind = lines[4].split(",")[0], lines[4].rsplit(",", 1)[-1]
    for title in ('"two\nlines, said', '"big pie'):
        changed = [*lines[:4], f"{name},{title},{kind}", *lines[5:]]
        path.write_text("\n".join(changed))
        with pytest.raises(ValueError, match=r"train_titles.csv: line 5 opens a quote that takes the next lines"):
            run("food101", raw, tmp_path / "out")
    path.write_text("\n".join([*lines[:4], f'{name},"two\nlines, said",{kind}', *lines[5:]]))
    run("food101", raw, tmp_path / "out")
    assert table(tmp_path / "out" / "train.arrow")["text"][4].as_py() == ["two\nlines, said"]
