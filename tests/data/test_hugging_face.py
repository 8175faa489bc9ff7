"""Folders of Hugging Face `datasets`: a Dataset or a DatasetDict, images as features, bytes or paths, any label."""

import pickle
from pathlib import Path

import pytest

datasets = pytest.importorskip("datasets")
Image = pytest.importorskip("PIL.Image")

from mora.data import open_dataset, splits_of  # noqa: E402
from tests.data import synthetic  # noqa: E402

SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def _quiet() -> None:
    datasets.disable_progress_bars()


def save(folder: Path, columns: dict, label: object, image: object = None, **parts: slice) -> Path:
    """Rows as a Dataset, or as a DatasetDict of slices of them."""
    features = {"image": image or datasets.Image(), "text": datasets.Value("string"), "label": label}
    if "split" in columns:
        features["split"] = datasets.Value("string")
    whole = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    chosen = {key: whole.select(range(len(whole))[part]) for key, part in parts.items()}
    (datasets.DatasetDict(chosen) if chosen else whole).save_to_disk(str(folder))
    return folder


def columns(count: int = 40) -> dict:
    encoded = [{"bytes": synthetic.picture(i % 4, i, "PNG"), "path": None} for i in range(count)]
    return {
        "image": [None if i % 7 == 3 else encoded[i] for i in range(count)],
        "text": [None if i % 7 == 0 else f"{synthetic.WORDS[i % 4]} {i}" for i in range(count)],
        "label": [i % 4 for i in range(count)],
    }


def test_a_dataset_dict_of_class_labels(tmp_path: Path) -> None:
    label = datasets.ClassLabel(names=["zebra", "apple", "mole", "cat"])
    folder = save(tmp_path / "set", columns(), label, train=slice(0, 24), val=slice(24, 32), test=slice(32, 40))
    assert splits_of(folder) == SPLITS
    for split, start, stop in (("train", 0, 24), ("validation", 24, 32), ("test", 32, 40)):
        data = open_dataset(folder, split)
        assert (data.name, data.metric, data.classes) == ("set", "accuracy", ("zebra", "apple", "mole", "cat"))
        assert data.labels().tolist() == [i % 4 for i in range(start, stop)]
        assert data.available().tolist() == [1 if i % 7 == 0 else 2 if i % 7 == 3 else 0 for i in range(start, stop)]
        for index in range(len(data)):
            sample, row = data[index], start + index
            assert (sample.text is None) == (row % 7 == 0)
            if sample.image is not None:
                expected = Image.open(__import__("io").BytesIO(synthetic.picture(row % 4, row, "PNG")))
                assert sample.image.tobytes() == expected.tobytes()
    assert pickle.loads(pickle.dumps(data))[0].image.tobytes() == data[0].image.tobytes()


@pytest.mark.parametrize(
    ("label", "values", "classes", "several"),
    [
        (datasets.Value("int64"), [i % 3 for i in range(40)], ("0", "1", "2"), False),
        (datasets.Value("string"), ["ab"[i % 2] for i in range(40)], ("a", "b"), False),
        (datasets.Value("string"), ["a|b" if i % 2 else "b" for i in range(40)], ("a", "b"), True),
        (datasets.List(datasets.Value("string")), [["a", "b"][i % 2 :] for i in range(40)], ("a", "b"), True),
        (datasets.List(datasets.ClassLabel(names=["y", "x"])), [[0, 1][i % 2 :] for i in range(40)], ("y", "x"), True),
    ],
)  # fmt: skip
def test_labels_of_every_type(tmp_path: Path, label: object, values: list, classes: tuple, several: bool) -> None:
    folder = save(tmp_path / "set", {**columns(), "label": values}, label)
    data = open_dataset(folder, "all")
    assert (data.classes, data.multi_label) == (classes, several)
    first = data.labels()[0]
    assert (first.nonzero().flatten().tolist() if several else int(first)) == {
        "0": 0, "a": [1] if "a|b" in values else [0, 1] if several else 0, "y": [0, 1],
    }[classes[0]]  # fmt: skip
    assert sum(len(open_dataset(folder, split)) for split in splits_of(folder)) == 40


def test_a_column_split_or_a_division_as_a_manifest_has(tmp_path: Path) -> None:
    found = columns(100)
    folder = save(tmp_path / "a", found, datasets.Value("int64"))
    assert [len(open_dataset(folder, split)) for split in SPLITS] == [84, 8, 8]
    found["split"] = ["train"] * 60 + ["dev"] * 20 + ["test"] * 20
    folder = save(tmp_path / "b", found, datasets.Value("int64"))
    assert [len(open_dataset(folder, split)) for split in SPLITS] == [60, 20, 20]


@pytest.mark.parametrize("kind", ["path", "binary", "image path"])
def test_images_as_paths_and_bytes(tmp_path: Path, kind: str) -> None:
    found = columns()
    for index, image in enumerate(found["image"]):
        if image is not None:
            path = tmp_path / f"{index}.png"
            path.write_bytes(image["bytes"])
            found["image"][index] = image["bytes"] if kind == "binary" else str(path)
    feature = {"path": datasets.Value("string"), "binary": datasets.Value("binary"), "image path": datasets.Image()}
    data = open_dataset(save(tmp_path / "set", found, datasets.Value("int64"), feature[kind]), "all")
    assert data[1].image.size == (24, 20) and data[3].image is None
    if kind == "path":
        (tmp_path / "1.png").unlink()
        with pytest.raises(ValueError, match=r"1 of 40 image files do not exist: .*set row 2"):
            open_dataset(tmp_path / "set", "all")


def test_broken_images_are_named(tmp_path: Path) -> None:
    found = columns()
    found["image"][5]["bytes"] = b"broken"
    folder = save(tmp_path / "set", found, datasets.Value("int64"))
    with pytest.raises(ValueError, match="set row 6: the image cannot be read: it is none of JPEG, PNG"):
        open_dataset(folder, "all")[5]
    with pytest.warns(UserWarning, match="left out 1 images: .*set row 6"):
        assert len(open_dataset(folder, "all", on_broken="skip")) == 39


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    found = columns()
    datasets.Dataset.from_dict({"picture": [1], "label": [0]}).save_to_disk(str(tmp_path / "a"))
    with pytest.raises(ValueError, match="got the columns picture, label, expected image, text too"):
        open_dataset(tmp_path / "a", "train")
    folder = save(tmp_path / "b", found, datasets.Value("int64"), train=slice(0, 20), holdout=slice(20, 40))
    with pytest.raises(ValueError, match="got the splits 'holdout', expected train, validation"):
        open_dataset(folder, "train")
    unknown = {**found, "label": [-1, *found["label"][1:]]}
    folder = save(tmp_path / "c", unknown, datasets.ClassLabel(names=list("abcd")))
    with pytest.raises(ValueError, match="got no label in row 1, expected one in every row"):
        open_dataset(folder, "train")
    (folder / "data-00000-of-00001.arrow").write_bytes(b"cut")
    with pytest.raises(ValueError, match="got a data set that cannot be loaded"):
        open_dataset(folder, "train")


def test_a_format_hides_no_column_and_labels_beyond_the_classes_are_named(tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict({"image": [b"a", b"b"], "text": ["x", "y"], "label": [0, 1]})
    data.with_format("numpy", columns=["text"]).save_to_disk(tmp_path / "set")
    opened = open_dataset(tmp_path / "set", "all")
    assert opened.classes == ("0", "1") and opened.available().tolist() == [0, 0]
    names = datasets.Features({**data.features, "label": datasets.ClassLabel(names=["cat", "dog"])})
    data.cast(names).save_to_disk(tmp_path / "named")
    info = tmp_path / "named" / "dataset_info.json"
    info.write_text(info.read_text().replace('"dog"', '"cat"'))
    with pytest.raises(ValueError, match="got the classes 'cat' twice|cannot be loaded"):
        open_dataset(tmp_path / "named", "all")


@pytest.mark.parametrize("image", ["../secret.png", "a/../../secret.png"])
def test_a_path_that_leaves_the_folder_is_not_read(tmp_path: Path, image: str) -> None:
    rows = {"image": [image, "b.png"], "text": ["x", "y"], "label": ["a", "b"]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "set")
    with pytest.raises(ValueError, match=f"got the image '{image}' in row 1, outside the folder"):
        open_dataset(tmp_path / "set", "all")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [1, 2], "text": ["x", "y"], "label": [0, 1]}, "image: got a column of type int64, expected images"),
        ({"image": [b"a", b"b"], "text": ["x", "y"], "label": [b"0", b"1"]}, "got label of type binary"),
        ({"image": [b"a", b"b"], "text": ["x", "y"], "label": [[[0]], [[1]]]}, "got label of type list<"),
    ],
)
def test_columns_of_other_types_are_named(tmp_path: Path, columns: dict, message: str) -> None:
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "set")
    with pytest.raises(ValueError, match=message):
        open_dataset(tmp_path / "set", "all")
