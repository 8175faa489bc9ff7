"""The three published layouts and a manifest, tiny: train, evaluate, predict, merge, all from the command line."""

import csv
import json

import pytest
from safetensors.torch import load_file

from mora.cli import main
from mora.data import open_dataset, table_seed
from mora.evaluation.grid import evaluate
from mora.runs.run import load_run
from tests.data import synthetic

FIGURES = {
    "mmimdb": {"macro_f1", "micro_f1", "macro_f1_per_movie"},
    "food101": {"accuracy", "macro_accuracy"},
    "hateful_memes": {"auroc", "accuracy"},
}
SAMPLES = {"mmimdb": 15, "food101": 8, "hateful_memes": 8}


def mora(*arguments):
    assert main([*map(str, arguments)]) == 0


@pytest.mark.parametrize("name", list(FIGURES))
def test_published_layouts(name, tmp_path, capsys):
    source, run = synthetic.arrow(tmp_path, name), tmp_path / "run"
    mora("train", "--data", source, "--out", run, "--missing", "both:0.7", "--epochs", 1, "--batch", 8)
    mora("evaluate", "--model", run, "--grid", "--rates", 0.5, "--seeds", 2, "--out", tmp_path / "results")
    rows = list(csv.DictReader((tmp_path / "results/results.csv").open()))
    assert len(rows) == 1 + 3 * 2
    assert FIGURES[name] <= set(rows[0])
    assert {int(row["rows"]) for row in rows} == {SAMPLES[name]}
    assert all(0 <= float(row[figure]) <= 1 for row in rows for figure in FIGURES[name])

    loaded, dataset = load_run(run), open_dataset(source, "test")
    seed = table_seed(loaded.config["train"]["seed"], "test")
    again = evaluate(loaded, dataset, "both:0.7", seed=seed)
    assert again.figures == pytest.approx(json.loads((run / "result.json").read_text())["test"])

    capsys.readouterr()
    mora("predict", "--model", run, "--text", "a curry", "--json")
    assert json.loads(capsys.readouterr().out)["missing"] == "image"
    for library in ("open_clip", "hugging_face"):
        mora("merge", "--model", run, "--out", tmp_path / library, "--format", library)
        assert json.loads((tmp_path / library / "classifier.json").read_text())["test"]
        head = load_file(tmp_path / library / "classifier.safetensors")
        assert head["weight"].shape == (len(dataset.classes), 256)


def test_methods_of_one_manifest_side_by_side(tmp_path):
    """Naturally missing rows stay so; a manifest of new rows is scored whole."""
    source = synthetic.manifest(tmp_path)
    for method in ("mora", "linear"):
        mora("train", "--data", source, "--out", tmp_path / method, "--method", method, "--epochs", 1, "--batch", 16)
    runs = [tmp_path / "mora", tmp_path / "linear"]
    mora("evaluate", "--model", *runs, "--missing", "text:0.5", "--seeds", 1, "--out", tmp_path / "results")
    content = json.loads((tmp_path / "results/results.json").read_text())
    assert [model["label"] for model in content["models"]] == ["mora", "linear"]
    mora("evaluate", "--model", runs[0], "--data", source, "--split", "all", "--out", tmp_path / "all")
    content = json.loads((tmp_path / "all/results.json").read_text())
    assert content["data"]["split"] == "all"
    assert content["data"]["natural"] == {"text_missing": 6, "image_missing": 6}
    (cell,) = content["cells"]
    assert (cell["complete"], cell["text_missing"], cell["image_missing"]) == (28, 6, 6)


def test_one_class_has_no_auroc(tmp_path, capsys):
    source, run = synthetic.arrow(tmp_path, "hateful_memes"), tmp_path / "run"
    mora("train", "--data", source, "--out", run, "--epochs", 1)
    one = tmp_path / "one.csv"
    one.write_text("image,text,label\n,bread number 1,hateful\n,bread number 2,hateful\n")
    capsys.readouterr()
    arguments = ["evaluate", "--model", run, "--data", one, "--split", "all", "--out", tmp_path / "out"]
    assert main([*map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "auroc: got labels of class 1 only in 2 rows, expected both classes" in error
    assert not (tmp_path / "out").exists()
