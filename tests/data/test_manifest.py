"""Manifests of every format, natural absence, the derived split, and a message for whatever is wrong."""

from collections import Counter
from pathlib import Path

import pytest
import torch

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("pyarrow")

from mora.data import open_dataset, splits_of  # noqa: E402
from tests.data import synthetic  # noqa: E402

SUFFIXES = (".csv", ".jsonl", ".parquet")
SPLITS = ("train", "validation", "test")


def rows(**changes: object) -> list[dict]:
    """Eight complete rows of two classes, with `changes` to row 2; images are not written."""
    found = [{"image": f"{i}.png", "text": f"text {i}", "label": "ab"[i % 2], "split": "train"} for i in range(8)]
    found[1].update(changes)
    return found


def write(folder: Path, found: list[dict], suffix: str = ".csv", pictures: bool = True) -> Path:
    for row in found:
        image = row.get("image")
        if pictures and isinstance(image, str) and image and ".." not in image:
            (folder / image).write_bytes(synthetic.picture(0, 0, "PNG"))
    path = folder / f"manifest{suffix}"
    synthetic.write_manifest(path, found)
    return path


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("split", [False, True])
def test_formats_agree(tmp_path: Path, split: bool, multi_label: bool) -> None:
    prints = set()
    for suffix in SUFFIXES:
        path = synthetic.manifest(tmp_path / suffix, suffix, split=split, multi_label=multi_label)
        parts = {name: open_dataset(path, name) for name in splits_of(path)}
        assert sum(map(len, parts.values())) == 40
        assert {data.classes for data in parts.values()} == {("apple", "bread", "curry", "donut")}
        assert {data.multi_label for data in parts.values()} == {multi_label}
        prints.add(tuple(data.fingerprint for data in parts.values()))
    assert len(prints) == 1


def test_rows_that_lack_something_are_naturally_missing(tmp_path: Path) -> None:
    data = open_dataset(synthetic.manifest(tmp_path), "all")
    expected = [1 if i % 7 == 0 else 2 if i % 7 == 3 else 0 for i in range(40)]
    assert data.available().tolist() == expected
    for index, lacking in enumerate(expected):
        sample = data[index]
        assert (sample.text is None, sample.image is None) == (lacking == 1, lacking == 2)
        assert data.labels()[index] == sample.label == index % 4
        assert sample.id.startswith(f"row {index + 1}")
    assert data.metric == "accuracy"
    assert data.groups() is None and data.rows == 40


def test_several_labels_are_multi_hot(tmp_path: Path) -> None:
    data = open_dataset(synthetic.manifest(tmp_path, multi_label=True), "all")
    assert data.metric == "macro_f1"
    assert data.labels().dtype == torch.float32
    assert data[2].label.tolist() == [1, 1, 1, 0]


def test_lists_of_labels_and_numbers(tmp_path: Path) -> None:
    found = rows()
    for index, row in enumerate(found):
        row["label"] = [index % 2, 10] if index else [10]
    data = open_dataset(write(tmp_path, found, ".jsonl"), "all")
    assert data.classes == ("0", "1", "10")
    for row in found:
        row["label"] = float(row["label"][0])
    assert open_dataset(write(tmp_path, found, ".parquet"), "all").classes == ("0", "1", "10")


def test_written_splits_are_kept_by_any_name(tmp_path: Path) -> None:
    found = rows()
    for row, word in zip(found, ("train", "Train", "val", "dev", "validation", "test", "test", "test"), strict=True):
        row["split"] = word
    path = write(tmp_path, found)
    assert splits_of(path) == SPLITS
    assert [len(open_dataset(path, split)) for split in SPLITS] == [2, 3, 3]


def test_the_derived_split_is_stratified_and_keeps_pictures_together(tmp_path: Path) -> None:
    found = [
        {"image": f"{i // 2}.png", "text": f"caption {i}", "label": "abc"[i // 2 % 3]} for i in range(300)
    ]  # two captions per picture
    path = write(tmp_path, found)
    parts = {split: open_dataset(path, split) for split in SPLITS}
    assert {split: Counter(data.labels().tolist()) for split, data in parts.items()} == {
        "train": {0: 80, 1: 80, 2: 80}, "validation": {0: 10, 1: 10, 2: 10}, "test": {0: 10, 1: 10, 2: 10},
    }  # fmt: skip
    pictures = [{data[index].id.split(": ")[1] for index in range(len(data))} for data in parts.values()]
    assert not pictures[0] & pictures[1] and not pictures[0] & pictures[2] and not pictures[1] & pictures[2]
    again = write(tmp_path, found[::-1])  # a row's split does not depend on where it stands
    expected = {parts["test"][index].text for index in range(30)}
    for data, same in ((open_dataset(again, "test"), True), (open_dataset(path, "test", seed=1), False)):
        assert ({data[index].text for index in range(30)} == expected) is same


def test_every_row_is_in_one_split(tmp_path: Path) -> None:
    path = synthetic.manifest(tmp_path, count=57)
    names = [open_dataset(path, split)[i].id for split in SPLITS for i in range(len(open_dataset(path, split)))]
    assert sorted(names) == sorted(open_dataset(path, "all")[i].id for i in range(57))


def test_a_model_brings_its_classes(tmp_path: Path) -> None:
    path = write(tmp_path, [{"text": "only text", "label": "b"}, {"text": "more", "label": "b"}])
    data = open_dataset(path, "all", classes=("a", "b", "c"))
    assert data.labels().tolist() == [1, 1] and data.available().tolist() == [2, 2]
    data = open_dataset(path, "all", classes=("a", "b", "c"), multi_label=True)
    assert data.labels().tolist() == [[0, 1, 0], [0, 1, 0]] and data.metric == "macro_f1"
    with pytest.raises(ValueError, match=r"got the labels 'b' \(2 rows\), expected the 2 known classes: x, y"):
        open_dataset(path, "all", classes=("x", "y"))


def test_absolute_paths_are_read_and_a_path_that_leaves_the_folder_is_not(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(synthetic.picture(0, 0, "PNG"))
    folder = tmp_path / "data"
    folder.mkdir()
    path = write(folder, rows(image=str(tmp_path / "secret.png")))
    assert open_dataset(path, "train")[1].image is not None
    path = write(folder, rows(image="sub/../../secret.png"))
    with pytest.raises(
        ValueError, match=r"images outside the manifest's folder in row 2, such as 'sub/../../secret.png'"
    ):
        open_dataset(path, "train")


def test_transparent_pictures_are_on_white_and_opaque_ones_as_they_are(tmp_path: Path) -> None:
    found = rows()
    path = write(tmp_path, found)
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "0.png")
    Image.new("RGBA", (4, 4), (10, 20, 30, 255)).save(tmp_path / "1.png")
    Image.new("I;16", (4, 4), 32768).save(tmp_path / "2.png")
    Image.new("L", (4, 4), 77).save(tmp_path / "3.png")
    data = open_dataset(path, "train")
    assert [data[i].image.getpixel((1, 1)) for i in range(4)] == [
        (255, 255, 255), (10, 20, 30), (128, 128, 128), (77, 77, 77),
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": ""}, "got no label in row 2, expected one in every row"),
        ({"image": "", "text": ""}, "got neither image nor text in row 2, expected one at least"),
        ({"split": "holdout"}, r"got the splits 'holdout' \(row 2\), expected train, validation \(val, dev\) or test"),
        ({"split": ""}, "got no split in row 2, expected one in every row, or no column split"),
        ({"split": "test", "label": "z"}, r"no row of train has the labels 'z' \(row 2\), which validation or test"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, suffix: str, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"manifest{suffix}: {message}"):
        open_dataset(write(tmp_path, rows(**changes), suffix), "train")


def test_wrong_columns_are_named(tmp_path: Path) -> None:
    found = [{"image": "", "text": "a", "lable": "x", "price": "3"}]
    with pytest.raises(
        ValueError, match="unknown columns 'lable', 'price', .*; did you mean 'label'?.*--extra-columns"
    ):
        open_dataset(write(tmp_path, found), "train")
    with pytest.raises(ValueError, match="got the columns image, text, lable, price, expected label too"):
        open_dataset(write(tmp_path, found), "train", extra_columns=True)
    found = [{**row, "price": 3} for row in rows()]
    path = write(tmp_path, found)
    with pytest.raises(ValueError, match="got the unknown columns 'price', expected image, text, label, split"):
        splits_of(path)
    assert splits_of(path, extra_columns=True) == ("train",)
    assert len(open_dataset(path, "train", extra_columns=True)) == 8


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_cannot_be_learned_is_refused(tmp_path: Path, suffix: str) -> None:
    one = [{**row, "label": "a"} for row in rows()]
    with pytest.raises(ValueError, match=r"every row is of one class \(a\), expected two classes at least"):
        open_dataset(write(tmp_path, one, suffix), "test")
    for column in ("image", "text"):
        found = [{**row, column: ""} for row in rows()]
        with pytest.raises(ValueError, match=f"every row lacks its {column}, expected some rows to have one"):
            open_dataset(write(tmp_path, found, suffix), "train")
    with pytest.raises(ValueError, match=r"split: got 'test', expected one that .* has: 'train' \(8 rows\) or 'all'"):
        open_dataset(write(tmp_path, rows(), suffix), "test")


def test_empty_and_damaged_files_are_named(tmp_path: Path) -> None:
    for name, data, message in (
        ("a.csv", b"", "got an empty file, expected a line with the names of the columns"),
        ("b.csv", b"image,text,label\n", "got no rows"),
        ("c.csv", b"image,text,label\na,b\n", "got a file that is not CSV in UTF-8 .*Expected 3 columns, got 2"),
        ("d.csv", b"image,text,label\n\xff\xfe,b,c\n", "line 2 is not UTF-8"),
        ("e.csv", b"text,text,label\na,b,c\n", "got the columns text twice"),
        ("f.jsonl", b"\n", "got no rows"),
        ("g.jsonl", b'{"text": "a"}\n{"text": \n', "line 2: got text that is not JSON"),
        ("h.jsonl", b'["a"]\n', "got list in line 1, expected a JSON object"),
        ("i.jsonl", b'{"text": 5, "label": "a"}\n', "got text of type int in line 1, expected text or null"),
        ("j.parquet", b"PAR1", "got a damaged Parquet file"),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            open_dataset(path, "train")


def test_every_missing_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, rows())
    for name in ("0.png", "5.png"):
        (tmp_path / name).unlink()
    with pytest.raises(
        ValueError, match=r"2 of 8 image files do not exist: row 1: 0.png, row 6: 5.png; mend the paths"
    ):
        open_dataset(path, "train")
    with pytest.warns(UserWarning, match="left out 2 images: row 1: 0.png: the file cannot be read: No such file"):
        data = open_dataset(path, "train", on_broken="skip")
    assert len(data) == 6 and data[0].id == "row 2: 1.png"


@pytest.mark.parametrize(
    "damage", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, b"%!PS-Adobe-3.0 EPSF-3.0\n", "cut"]
)
def test_a_broken_image_is_never_silently_white(tmp_path: Path, damage: bytes | str) -> None:
    path = write(tmp_path, rows())
    whole = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(whole[: len(whole) // 2] if isinstance(damage, str) else damage)
    with pytest.raises(ValueError, match="row 4: 3.png: the image cannot be read"):
        open_dataset(path, "train")[3]
    with pytest.warns(UserWarning, match="row 4: 3.png: the image cannot be read"):
        data = open_dataset(path, "train", on_broken="skip")
    assert len(data) == 7 and len(data.broken) == 1


def test_a_decompression_bomb_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"row 1: 0.png: the image cannot be read: Image size .* exceeds limit"):
        open_dataset(write(tmp_path, rows()), "train")[0]


def test_what_is_left_without_the_broken_has_to_be_learnable(tmp_path: Path) -> None:
    path = write(tmp_path, rows())
    for index in range(0, 8, 2):
        (tmp_path / f"{index}.png").unlink()
    message = r"manifest, train \(after leaving out 4 broken images\): every row is of one class \(b\)"
    with pytest.warns(match="left out 4 images"), pytest.raises(ValueError, match=message):
        open_dataset(path, "train", on_broken="skip")


def test_all_broken_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, rows(), pictures=False)
    with pytest.warns(match="left out 8 images"), pytest.raises(ValueError, match="no image can be read: row 1: 0.png"):
        open_dataset(path, "train", on_broken="skip")


def test_commas_quotes_lines_and_blanks_survive(tmp_path: Path) -> None:
    text = 'a "red, round"\nbowl \u2028 émoji 🥣'
    for suffix in SUFFIXES:
        data = open_dataset(write(tmp_path, rows(text=text), suffix), "train")
        assert data[1].text == text
        blank = open_dataset(write(tmp_path, rows(text="  \t"), suffix), "train")
        assert blank[1].text is None


@pytest.mark.parametrize(("start", "suffix"), [("```text\nimage,", ".csv"), ("```json\n", ".jsonl")])
def test_the_documented_example_opens(tmp_path: Path, start: str, suffix: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    (tmp_path / "photos").mkdir()
    for index in (1, 2):
        (tmp_path / "photos" / f"{index}.jpg").write_bytes(synthetic.picture(0, index))
    path = tmp_path / f"catalogue{suffix}"
    path.write_text((start + page.split(start, 1)[1]).split("```")[1].split("\n", 1)[1])
    train, test = open_dataset(path, "train"), open_dataset(path, "test")
    assert train.classes == ("coats", "sale", "shoes")
    assert train.available().tolist() == [0, 1] and test.available().tolist() == [2]
    assert test.labels().tolist() == [[1, 1, 0]]


def test_classes_that_are_one_number_keep_their_order(tmp_path: Path) -> None:
    names = ["1", "01", "001", "2", "02", "0001"]
    found = [{"text": f"text {i}", "label": name, "split": "train"} for i, name in enumerate(names * 2)]
    found[0]["image"], path = "0.png", tmp_path / "manifest.csv"
    (tmp_path / "0.png").write_bytes(synthetic.picture(0, 0, "PNG"))
    synthetic.write_manifest(path, found)
    assert open_dataset(path, "train").classes == ("0001", "001", "01", "1", "02", "2")


@pytest.mark.parametrize("spelled", ["./{}", "a/../{}", ".//{}"])
def test_one_picture_spelled_in_two_ways_stays_in_one_split(tmp_path: Path, spelled: str) -> None:
    found = [{"image": f"{i}.png", "text": f"text {i}", "label": "ab"[i % 2]} for i in range(30)]
    path = write(tmp_path, found)
    again = [{**row, "image": spelled.format(row["image"])} for row in found]
    (tmp_path / "a").mkdir()
    synthetic.write_manifest(path, [*found, *again])
    for split in SPLITS:
        data = open_dataset(path, split)
        assert set(Counter(data[index].text for index in range(len(data))).values()) == {2}


def test_what_is_no_manifest_says_what_it_looks_like(tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    path.write_text("image;text;label\n;one;a\n")
    with pytest.raises(ValueError, match="one column 'image;text;label', expected image, text, label.* commas"):
        open_dataset(path, "all")
    path = tmp_path / "manifest.jsonl"
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="line 1: got JSON nested 100,000 deep, expected at most 64"):
        open_dataset(path, "all")
    path.write_text('{"text": "one", "label": {"a": 1}}\n')
    with pytest.raises(ValueError, match="label of type dict in line 1, expected text, a number, or a list"):
        open_dataset(path, "all")
