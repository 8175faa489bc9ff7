"""`mora data check` finds what `mora train` would refuse, and both say it in the same words."""

from pathlib import Path

import pytest

pytest.importorskip("PIL")
pa = pytest.importorskip("pyarrow")

from PIL import Image  # noqa: E402

from mora.cli import main  # noqa: E402
from mora.data.check import check  # noqa: E402
from mora.training.config import TrainConfig  # noqa: E402
from mora.training.setup import open_splits  # noqa: E402
from tests.data import synthetic  # noqa: E402
from tests.data.test_arrow import write  # noqa: E402

TEXTS = [["a"], ["b"]] * 4


def one_class_test(folder: Path) -> Path:
    root = synthetic.arrow(folder, "hateful_memes")
    table = pa.ipc.open_file(str(root / "test.arrow")).read_all()
    write(root / "test.arrow", table.set_column(2, "label", pa.array([1] * len(table), pa.int64())))
    return root


def without_validation(folder: Path) -> Path:
    root = synthetic.arrow(folder, "food101")
    (root / "val.arrow").unlink()
    return root


def only_test(folder: Path) -> Path:
    root = without_validation(folder)
    (root / "train.arrow").unlink()
    return root


def other_labels(folder: Path) -> Path:
    picture = synthetic.picture(0, 0)
    for split, width in (("train", 3), ("val", 2)):
        labels = [[int(i % 2 == k) for k in range(width)] for i in range(8)]
        write(folder / "own" / f"{split}.arrow", {"image": [picture] * 8, "text": TEXTS, "label": labels})
    return folder / "own"


def manifest_without_validation(folder: Path) -> Path:
    path = synthetic.manifest(folder, split=True)
    path.write_text(path.read_text().replace(",validation", ",train"))
    return path


CASES = [
    (without_validation, "has no validation split (found: train, test), expected train and validation"),
    (only_test, "has no train split (found: test), expected train and validation"),
    (manifest_without_validation, "has no validation split (found: train, test)"),
    (one_class_test, "hateful_memes, test: every row is of one class (hateful), expected both: without positives"),
    (other_labels, "own, validation: got 2 classes (0, 1) scored by macro_f1, expected the 3 of train (0, 1, 2)"),
]


@pytest.mark.parametrize(("make", "message"), CASES, ids=[make.__name__ for make, _ in CASES])
def test_what_training_refuses_fails_the_check(
    tmp_path: Path, make: object, message: str, capsys: pytest.CaptureFixture
) -> None:
    source = make(tmp_path)  # type: ignore[operator]
    config = TrainConfig(data=str(source), out=str(tmp_path / "run"))
    with pytest.raises(ValueError) as refused:  # noqa: PT011 # what it says is the next line
        open_splits(config, 64)
    assert message in str(refused.value)
    assert main(["data", "check", str(source)]) == 2
    out, err = capsys.readouterr()
    assert message in " ".join(err.split()) and message in out and "what mora train refuses (1):" in out


def test_data_that_is_not_to_be_trained_on_is_checked_by_split(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["data", "check", str(only_test(tmp_path)), "--splits", "test"]) == 0
    assert "refuses" not in capsys.readouterr().out


def test_a_metric_is_checked_as_training_takes_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = synthetic.manifest(tmp_path)
    assert main(["data", "check", str(path), "--metric", "auroc"]) == 2
    assert "metric: got 'auroc', expected one of 'accuracy'" in capsys.readouterr().err


def test_pictures_of_nearly_one_colour_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = synthetic.manifest(tmp_path)
    Image.new("RGB", (60, 60), (3, 3, 3)).save(tmp_path / "images" / "5.png")
    nearly = Image.effect_noise((60, 60), 1).convert("RGB")
    nearly.putpixel((3, 3), (255, 0, 0))  # one bright pixel of 3,600
    nearly.save(tmp_path / "images" / "6.png")
    half = Image.new("RGB", (60, 60), "black")
    half.paste("white", (0, 0, 60, 2))
    half.save(tmp_path / "images" / "9.png")
    assert main(["data", "check", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("images of nearly one colour (2):")
    assert sorted(lines[start + 1 : start + 3]) == ["row 6: images/5.png", "row 7: images/6.png"]
    assert sorted(check(path).plain) == ["row 6: images/5.png", "row 7: images/6.png"]


def test_names_from_data_print_on_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    name, other = "a\nb\x1b[2J\t\u202e", "evil\rclass"
    rows = [{"image": f"{i}.png", "text": f"t{i}", "label": (name, other)[i // 4 % 2]} for i in range(40)]
    strange = "0\x1b[31m\n.png"
    rows[0]["image"] = strange
    for row in rows:
        (tmp_path / str(row["image"])).write_bytes(synthetic.picture(0, 1, "PNG"))
    (tmp_path / strange).write_bytes(b"no picture")
    path = tmp_path / "m.jsonl"
    synthetic.write_manifest(path, rows)
    assert main(["data", "check", str(path)]) == 2
    out, err = capsys.readouterr()
    assert not {"\x1b", "\r", "\t", "\u202e"} & set(out + err)
    assert "a\\nb\\x1b[2J\\t\\u202e" in out and "evil\\rclass" in out
    assert "row 1: 0\\x1b[31m\\n.png: the image cannot be read" in out


def test_tables_that_would_be_ignored_are_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = synthetic.manifest(tmp_path, split=True)
    for seed in (1, 2):
        assert (
            main(["data", "table", str(path), "--missing", "text:0.5", "--seed", str(seed), "--out", str(tmp_path)])
            == 0
        )
    first, second = (tmp_path / f"manifest_train_missing_text_0.5_seed{seed}.safetensors" for seed in (1, 2))
    capsys.readouterr()
    assert main(["data", "check", str(path), "--tables", str(first), str(second)]) == 2
    assert f"tables: got {second}, another for train beside {first}, expected one at most" in capsys.readouterr().err
    assert main(["data", "check", str(path), "--splits", "test", "--tables", str(first)]) == 2
    assert f"tables: got {first}, one for train, expected one at most for each of test" in capsys.readouterr().err


def test_options_that_mean_nothing_or_are_out_of_range_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = str(synthetic.manifest(tmp_path))
    table = ["data", "table", path, "--missing", "text:0.5", "--out", str(tmp_path / "t")]
    for arguments, message in (
        (["data", "check", path, "--data-name", "mmimdb"], f"name (--data-name): got 'mmimdb' for {path}, expected it"),
        (["data", "check", "openmoji", "--data-name", "x"], "name (--data-name): got 'x' for openmoji, expected it"),
        (["data", "check", path, "--split-seed", "-1"], "seed (--split-seed): got -1, expected a whole number from 0"),
        ([*table, "--seed", "-1"], "seed: got -1, expected a whole number from 0 to 2**63 - 1"),
        ([*table, "--seed", str(2**63)], f"seed: got {2**63}, expected a whole number"),
        ([*table, "--seed", "9" * 4000], "seed: got a longer number, expected a whole number"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "t").exists()
