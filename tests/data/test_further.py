"""A third modality, made up and registered, in manifests of every format: rows of every subset, and what is wrong."""

import io
import pickle

import numpy as np
import pytest
import torch

pytest.importorskip("PIL.Image")
pytest.importorskip("pyarrow")

from mora.cli import main
from mora.data import BrokenInputError, Modality, Row, open_dataset, register, splits_of
from mora.data.check import check
from mora.data.modalities import unregister
from tests.data import synthetic
from tests.data.vectors import Vectors

COUNT = 21


class Numbers(Modality):
    """A written modality: numbers in the cell."""

    name, plural, written = "number", "numbers", True

    def decode(self, data, where):
        try:
            return torch.tensor([float(word) for word in data.split()])
        except ValueError as error:
            raise BrokenInputError(f"{where}: the numbers cannot be read: {error}") from error


@pytest.fixture(autouse=True)
def registered():
    yield [register(Vectors()), register(Numbers())]
    unregister("vector")
    unregister("number")


def has(row):
    """Which of image, text, vector row `row` has: every non-empty subset, one after another."""
    code = row % 7 + 1
    return bool(code & 1), bool(code & 2), bool(code & 4)


def manifest(folder, suffix=".csv", count=COUNT, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for i in range(count):
        image, text, vector = has(i)
        if image:
            (folder / f"{i}.png").write_bytes(synthetic.picture(i % 4, i, "PNG"))
        if vector:
            np.save(folder / f"{i}.npy", np.full(4, i + 1, dtype=np.float32))
        found.append(
            {
                "image": f"{i}.png" if image else None,
                "text": f"text {i}" if text else None,
                "vector": f"{i}.npy" if vector else None,
                "label": "abc"[i % 3],
                "split": ("train", "train", "validation", "test")[i // 2 % 4],
            }
        )
    found[6].update(changes)
    path = folder / f"rows{suffix}"
    synthetic.write_manifest(path, found)
    return path


def test_formats_agree_on_rows_of_every_subset(tmp_path):
    prints = set()
    for suffix in (".csv", ".jsonl", ".parquet"):
        data = open_dataset(manifest(tmp_path / suffix[1:], suffix), "all")
        assert data.modalities == ("image", "text", "vector")
        assert data.present().mask.tolist() == [list(has(i)) for i in range(COUNT)]
        for i in range(COUNT):
            row = data[i]
            assert isinstance(row, Row) and [one is not None for one in row.inputs.values()] == list(has(i))
            if has(i)[2]:
                assert torch.equal(row.inputs["vector"], torch.full((4,), i + 1.0))
        again = pickle.loads(pickle.dumps(data))
        assert torch.equal(again[6].inputs["vector"], data[6].inputs["vector"])
        prints.add(data.fingerprint)
    assert len(prints) == 1
    assert splits_of(tmp_path / "csv/rows.csv") == ("train", "validation", "test")


def test_the_fingerprint_and_the_stamp_tell_of_the_third(tmp_path):
    path = manifest(tmp_path)
    before = open_dataset(path, "all")
    stamp = before.stamp()
    np.save(tmp_path / "6.npy", np.full(4, 9, dtype=np.float32))
    changed = open_dataset(path, "all")
    assert changed.fingerprint == before.fingerprint and changed.stamp() != stamp
    other = open_dataset(manifest(tmp_path / "b", vector="3.npy"), "all")
    assert other.fingerprint != before.fingerprint


def test_an_image_and_text_manifest_is_what_it_was(tmp_path):
    data = open_dataset(synthetic.manifest(tmp_path), "all")
    image, text, *_ = data[1]
    assert data.modalities == ("image", "text") and data[1].inputs == {"image": image, "text": text}


def test_other_columns_and_none_of_image_and_text(tmp_path):
    np.save(tmp_path / "v.npy", np.ones(4, dtype=np.float32))
    rows = [{"vector": "v.npy", "number": f"{i} 2", "label": "ab"[i % 2]} for i in range(4)]
    path = tmp_path / "rows.jsonl"
    synthetic.write_manifest(path, rows)
    data = open_dataset(path, "all")
    assert data.modalities == ("vector", "number") and data[3].inputs["number"].tolist() == [3, 2]
    rows[2] = {"vector": None, "number": None, "label": "a"}
    synthetic.write_manifest(path, rows)
    with pytest.raises(ValueError, match="got neither image, text, vector nor number in row 3, expected one at least"):
        open_dataset(path, "all")


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("gone.npy", r"rows, train: 1 of 11 vector files do not exist: row 9?.*; mend the paths, leave the cell empty"),
        ("../6.npy", r"got vectors outside the manifest's folder in row 7, such as '../6.npy'"),
        (7, "got vector of type int in line 7, expected text or null"),
    ],
)
def test_cells_that_lead_nowhere(tmp_path, cell, message):
    suffix = ".jsonl" if isinstance(cell, int) else ".csv"
    path = manifest(tmp_path, suffix, vector=cell, split="train")
    with pytest.raises(ValueError, match=message.replace("row 9?", "row 7: gone.npy").replace("11", r"\d+")):
        open_dataset(path, "train")


def test_broken_ones_are_named_or_left_out_and_what_stands_out_is_said(tmp_path, capsys):
    path = manifest(tmp_path)
    (tmp_path / "6.npy").write_bytes(b"half")
    np.save(tmp_path / "13.npy", np.zeros(4, dtype=np.float32))
    data = open_dataset(path, "all")
    with pytest.raises(BrokenInputError, match=r"row 7: 6.npy: the vector cannot be read: .*lists all such files"):
        data[6]
    with pytest.warns(UserWarning, match=r"left out 1 vectors: row 7: 6.npy: the vector cannot be read"):
        data = open_dataset(path, "all", on_broken="skip")
    assert len(data) == COUNT - 1 and data[6].id == "row 8: 7.png" and data.present().mask[6].tolist() == [*has(7)]
    assert torch.equal(data[9].inputs["vector"], torch.full((4,), 11.0))
    assert data.remarks == {"vector": ("row 14: 13.npy: all zero",)}
    found = check(path, splits=("all",))
    assert found.parts[0].missing == {name: int((~data.present()[name]).sum()) for name in data.modalities}
    assert main(["data", "check", str(path)]) == 2
    out = capsys.readouterr().out
    assert "complete  image missing  text missing  vector missing" in out
    assert "inputs that cannot be read (1):" in out and "inputs that stand out (1):\nrow 14: 13.npy: all zero" in out


def test_npy_that_would_run_code_is_refused():
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(BrokenInputError, match="Object arrays cannot be loaded"):
        Vectors().decode(buffer.getvalue(), "a.npy")
