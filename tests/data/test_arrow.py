"""The official Arrow layout: every (image, text) pair a sample, read lazily, safe in workers, damage named."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

pytest.importorskip("PIL")
pa = pytest.importorskip("pyarrow")

from mora.data import open_dataset, splits_of  # noqa: E402
from tests.data import synthetic  # noqa: E402


def write(path: Path, columns: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    return path.parent


@pytest.mark.parametrize(
    ("name", "metric", "number", "multi_label"),
    [("mmimdb", "macro_f1", 23, True), ("food101", "accuracy", 101, False), ("hateful_memes", "auroc", 2, False)],
)
def test_published_data_sets_are_recognised(
    tmp_path: Path, name: str, metric: str, number: int, multi_label: bool
) -> None:
    root = synthetic.arrow(tmp_path, name)
    assert splits_of(root) == ("train", "validation", "test")
    for split, count in zip(splits_of(root), synthetic.ROWS, strict=True):
        data = open_dataset(root, split)
        assert (data.name, data.metric, len(data.classes), data.multi_label) == (name, metric, number, multi_label)
        assert data.rows == count
        pairs = [(row, text) for row in synthetic.rows_of(name, split, count) for text in row.texts]
        assert len(data) == len(pairs)
        for index, (row, text) in enumerate(pairs):
            sample = data[index]
            assert sample.text == text
            assert (sample.image.mode, sample.image.size) == ("RGB", (24, 20))
            if multi_label:
                hot = {data.classes[place] for place in sample.label.nonzero().flatten().tolist()}
                assert hot == set(synthetic.genres(row.kind))
            else:
                assert sample.label.item() == row.kind
        assert not data.available().any()


def test_movies_with_several_plots_are_groups(tmp_path: Path) -> None:
    data = open_dataset(synthetic.arrow(tmp_path, "mmimdb"), "train")
    assert data.groups().tolist()[:6] == [0, 1, 1, 2, 2, 2]
    assert data.labels().dtype == torch.float32
    assert open_dataset(synthetic.arrow(tmp_path, "food101"), "train").groups() is None


def test_ids_are_unique(tmp_path: Path) -> None:
    for name in synthetic.ROOTS:
        data = open_dataset(synthetic.arrow(tmp_path, name), "train")
        assert len({data[index].id for index in range(len(data))}) == len(data)


def test_genres_stand_in_the_published_order(tmp_path: Path) -> None:
    assert open_dataset(synthetic.arrow(tmp_path, "mmimdb"), "test").classes == tuple(synthetic.GENRES)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_what_the_parent_reads(tmp_path: Path, method: str) -> None:
    data = open_dataset(synthetic.arrow(tmp_path, "food101"), "validation")
    here = [data[index] for index in range(len(data))]  # the parent's map is open before the workers start
    loader = DataLoader(data, batch_size=4, collate_fn=list, num_workers=1, multiprocessing_context=method)
    there = [sample for batch in loader for sample in batch]
    assert [(s.image.tobytes(), s.text, int(s.label), s.id) for s in here] == [
        (s.image.tobytes(), s.text, int(s.label), s.id) for s in there
    ]


def test_pickles_are_small_and_hold_no_map(tmp_path: Path) -> None:
    data = open_dataset(synthetic.arrow(tmp_path, "food101"), "train")
    again = pickle.loads(pickle.dumps(data))
    assert again[3].image.tobytes() == data[3].image.tobytes()
    assert len(pickle.dumps(data)) < 20_000


def test_peers_file_names_are_found(tmp_path: Path) -> None:
    root = synthetic.arrow(tmp_path, "mmimdb")
    for old, new in (("train", "mmimdb_train"), ("val", "mmimdb_dev"), ("test", "mmimdb_test")):
        (root / f"{old}.arrow").rename(root / f"{new}.arrow")
    assert splits_of(root) == ("train", "validation", "test")
    assert len(open_dataset(root, "validation")) == 15


def test_classes_come_from_class_idx(tmp_path: Path) -> None:
    root = synthetic.arrow(tmp_path, "food101")
    assert open_dataset(root, "train").classes[:2] == ("class 0", "class 1")
    (root / "class_idx.json").write_text(json.dumps({food: index for index, food in enumerate(synthetic.FOODS)}))
    assert open_dataset(root, "train").classes == tuple(synthetic.FOODS)


def test_a_model_names_classes_the_files_do_not(tmp_path: Path) -> None:
    root = synthetic.arrow(tmp_path, "food101")
    assert open_dataset(root, "test", classes=synthetic.FOODS).classes == tuple(synthetic.FOODS)
    with pytest.raises(ValueError, match=r"classes: got 2 \(a, b\), expected the 23 of"):
        open_dataset(synthetic.arrow(tmp_path, "mmimdb"), "test", classes=("a", "b"))


def test_null_is_naturally_missing_and_an_empty_list_makes_no_sample(tmp_path: Path) -> None:
    image = synthetic.picture(0, 0)
    table = pa.table(
        {
            "image": pa.array([image, None, image, image, image], pa.binary()),
            "text": pa.array([["a"], ["b"], None, [], [" "]], pa.list_(pa.string())),
            "label": [0, 1, 0, 1, 0],
        }
    )
    data = open_dataset(write(tmp_path / "own" / "train.arrow", table), "train")
    assert data.available().tolist() == [0, 2, 1, 1]
    assert data.rows == 5
    assert data.groups().tolist() == [0, 1, 2, 4]
    assert data[1].image is None and data[1].text == "b"
    assert data[2].text is None and data[2].image is not None
    assert (data.metric, data.classes) == ("accuracy", ("0", "1"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [b""], "label": [0]}, "got the columns image, label, expected text too"),
        ({"image": [b""], "text": [["a"]]}, "expected label too"),
        ({"image": [b""], "text": [["a"]], "label": pa.array([None], pa.int64())}, "got no label in row 1"),
        ({"image": [b""], "text": [["a"]], "label": ["cat"]}, "got labels of type string, expected int64"),
        ({"image": [b"", b""], "text": [["a"], ["b"]], "label": [[0, 1], [1]]}, "labels of 1, 2 values"),
        ({"image": [b"a", b"b"], "text": [["a"], ["b"]], "label": [1, 1]}, r"every row is of one class \(1\)"),
        ({"image": [b"a", b"b"], "text": [[""], [""]], "label": [0, 1]}, "every row lacks its text"),
        (
            {"image": pa.array([None, b"b"], pa.binary()), "text": [None, ["a"]], "label": [0, 1]},
            "got row 1 without image and text",
        ),
    ],
)
def test_wrong_columns_are_named(tmp_path: Path, columns: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_dataset(write(tmp_path / "own" / "train.arrow", columns), "train")


def test_labels_outside_the_published_classes_are_named(tmp_path: Path) -> None:
    root = write(
        tmp_path / "hateful_memes" / "train.arrow", {"image": [b"a"] * 2, "text": [["a"]] * 2, "label": [0, 2]}
    )
    with pytest.raises(ValueError, match="got labels from 0 to 2, expected 0 to 1, the classes of hateful_memes"):
        open_dataset(root, "train")
    root = write(tmp_path / "mmimdb" / "train.arrow", {"image": [b"a"] * 2, "plots": [["a"]] * 2, "label": [0, 2]})
    with pytest.raises(ValueError, match="got one label per row, expected 23 labels per row, as mmimdb has"):
        open_dataset(root, "train")


def test_damaged_files_and_streams_are_named(tmp_path: Path) -> None:
    root = synthetic.arrow(tmp_path, "food101")
    path = root / "train.arrow"
    whole = path.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", b"not arrow at all"):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match=r"train.arrow: got .*expected a whole Arrow IPC file"):
            open_dataset(root, "train")


def test_a_broken_image_is_refused_or_left_out_by_name(tmp_path: Path) -> None:
    root = synthetic.arrow(tmp_path, "mmimdb")
    table = pa.ipc.open_file(str(root / "train.arrow")).read_all()
    images = table["image"].to_pylist()
    images[1] = images[1][:200]
    images[4] = b""
    write(root / "train.arrow", table.set_column(0, "image", pa.array(images, pa.binary())))
    data = open_dataset(root, "train")
    with pytest.raises(ValueError, match=r"train.arrow row 2: the image cannot be read: .*[Tt]runcated"):
        data[1]
    with pytest.warns(UserWarning, match=r"left out 2 images: .*row 2: .*row 5: the image cannot be read: it is empty"):
        kept = open_dataset(root, "train", on_broken="skip")
    assert len(kept.broken) == 2
    assert kept.rows == 22 and len(kept) == len(data) - 4
    assert kept.groups().tolist()[:5] == [0, 1, 1, 1, 2]
    assert kept[1].text == data[3].text and kept[1].image.tobytes() == data[3].image.tobytes()
    assert kept.fingerprint != data.fingerprint


def test_what_cannot_be_opened_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"source: got .*nowhere, which does not exist, expected 'openmoji', 'open"):
        open_dataset(tmp_path / "nowhere", "train")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="a file of another kind"):
        splits_of(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match=r"got the folder .* with notes.txt"):
        open_dataset(tmp_path, "train")
    root = synthetic.arrow(tmp_path, "food101")
    (root / "val.arrow").unlink()
    with pytest.raises(ValueError, match=r"split: got 'validation', expected one that .* has an Arrow file of: train"):
        open_dataset(root, "validation")
    with pytest.raises(ValueError, match="split: got 'dev', expected one of 'train', 'validation', 'test' or 'all'"):
        open_dataset(root, "dev")
    with pytest.raises(ValueError, match="on_broken: got 'ignore', expected one of 'raise', 'skip'"):
        open_dataset(root, "train", on_broken="ignore")


def test_the_metric_can_be_chosen_where_it_has_a_meaning(tmp_path: Path) -> None:
    root = synthetic.arrow(tmp_path, "hateful_memes")
    assert open_dataset(root, "test", metric="accuracy").metric == "accuracy"
    with pytest.raises(ValueError, match="metric: got 'macro_f1', expected one of 'accuracy', 'auroc' for rows of one"):
        open_dataset(root, "test", metric="macro_f1")
    with pytest.raises(ValueError, match="metric: got 'auroc', expected one of 'macro_f1' for rows of several labels"):
        open_dataset(synthetic.arrow(tmp_path, "mmimdb"), "test", metric="auroc")


def test_the_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    first = open_dataset(synthetic.arrow(tmp_path / "a", "food101"), "train").fingerprint
    assert first == open_dataset(synthetic.arrow(tmp_path / "b", "food101"), "train").fingerprint
    assert first != open_dataset(tmp_path / "a" / "Food101", "test").fingerprint
    assert first != open_dataset(synthetic.arrow(tmp_path / "c", "food101", (23, 8, 8)), "train").fingerprint
