"""`mora evaluate`: its files, its tables in the terminal, and its refusals."""

import csv
import json
import re

import pytest
from PIL import Image

from mora.cli import main
from mora.data.tables import Missing, draw_table, save_table
from mora.evaluation.grid import NOTHING, Result
from mora.evaluation.tables import Summary, Table, everything, tables
from tests.evaluation.fakes import InMemory, write_run

pytest.importorskip("matplotlib")
pytest.importorskip("rich")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    made = {method: write_run(folder / method, method, seed=place) for place, method in enumerate(("mora", "linear"))}
    made["auroc"] = write_run(folder / "memes", metric="auroc")
    made["movies"] = write_run(folder / "movies", metric="macro_f1")
    return made


def open_squares(metric="accuracy"):
    groups = [0, 0, 1, 2, 2, 3, 4, 5] if metric == "macro_f1" else None
    return InMemory(metric=metric, groups=groups, natural=[0] * 18 + [1, 2] if groups is None else [0] * 8)


@pytest.fixture
def squares(monkeypatch):
    """What `open_dataset` is asked for, and the data set it answers with."""
    asked = []

    def open_dataset(source, split, **options):
        asked.append((source, split, options))
        metric = {4: "accuracy", 2: "auroc"}[len(options["classes"])]
        return open_squares("macro_f1" if options["multi_label"] else metric)

    monkeypatch.setattr("mora.evaluation.run.open_dataset", open_dataset)
    return asked


def evaluate(*arguments):
    return main(["evaluate", *map(str, arguments)])


def test_a_grid_of_two_models(runs, squares, tmp_path, capsys):
    out = tmp_path / "results"
    assert evaluate("--model", runs["mora"], runs["linear"], "--grid", "--seeds", 2, "--out", out) == 0
    terminal = capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["plot.png", "report.md", "results.csv", "results.json"]
    assert squares[0][:2] == ("squares.csv", "test")  # the data it was trained on
    assert squares[0][2]["classes"] == ("apple", "pear", "plum", "fig")

    rows = list(csv.DictReader((out / "results.csv").open()))
    assert len(rows) == 2 * (1 + 3 * 3 * 2)
    assert rows[0]["missing"] == "none"
    assert rows[0]["seed"] == ""
    assert {row["seed"] for row in rows[1:19]} == {"0", "1"}
    assert all(
        int(row["complete"]) + int(row["text_missing"]) + int(row["image_missing"]) == int(row["rows"]) == 20
        for row in rows
    )

    content = json.loads((out / "results.json").read_text())
    assert content["command"].startswith("mora evaluate --model")
    assert {"torch", "torchmetrics", "mora-kernels"} <= set(content["versions"])
    assert content["data"]["natural"] == {"text_missing": 1, "image_missing": 1}
    assert [model["config"]["method"] for model in content["models"]] == ["mora", "linear"]
    assert [cell["figures"]["accuracy"] for cell in content["cells"]] == [float(row["accuracy"]) for row in rows]
    both = [float(r["value"]) for r in rows if (r["model"], r["missing"], r["rate"]) == ("mora", "both", "0.7")]
    (mean,) = [
        entry
        for entry in content["summary"]
        if (entry["model"], entry["missing"], entry["rate"]) == ("mora", "both", 0.7)
    ]
    assert mean["accuracy"]["mean"] == pytest.approx(sum(both) / 2)
    assert mean["accuracy"]["deviation"] == pytest.approx(abs(both[0] - both[1]) / 2**0.5)

    last = content["cells"][-1]
    assert {n: own["rows"] for n, own in last["patterns"].items()} == {
        "complete": last["complete"], "image only": last["text_missing"], "text only": last["image_missing"]
    }  # fmt: skip
    assert float(rows[-1]["value_text_only"]) == last["patterns"]["text only"]["accuracy"]

    report = (out / "report.md").read_text()
    shown = f"{50 * sum(both):.2f} ± {100 * abs(both[0] - both[1]) / 2**0.5:.2f}"
    assert shown in report
    assert shown.replace(" ", "") in terminal
    for said in (
        "by what a row has",
        "| complete | image only | text only |",
        "A rate counts what is MISSING",
        "35 % lack their text",
        "By nature 1 samples have no text",
        "both 70 %",
    ):
        assert said in report
    assert "A rate counts what is MISSING" in terminal
    assert Image.open(out / "plot.png").size > (400, 300)


def test_the_same_twice(runs, squares, tmp_path):
    contents = []
    for _ in range(2):
        assert evaluate("--model", runs["mora"], "--missing", "both:0.5", "--out", tmp_path / "out") == 0
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()})
    assert contents[0] == contents[1]


def test_tables_from_files_and_damaged_rows(runs, squares, tmp_path):
    file = save_table(draw_table(open_squares(), Missing("both", 0.5, 0.25), 7), tmp_path / "tables")
    arguments = ["--missing", file, "--patches", 0.3, "--word-drop", 0.5, "--out", tmp_path / "out"]
    assert evaluate("--model", runs["mora"], *arguments) == 0
    rows = list(csv.DictReader((tmp_path / "out/results.csv").open()))
    assert [(row["missing"], row["rate"], row["both_ratio"], row["seed"], row["table"]) for row in rows] == [
        ("none", "0.0", "", "", ""),
        ("both", "0.5", "0.25", "7", str(file)),
    ]
    report = (tmp_path / "out/report.md").read_text()
    assert "damaged in part" in report
    assert "75 % of these no text, 25 % no image" in report
    assert f"Missing tables read: `{file}`" in report
    content = json.loads((tmp_path / "out/results.json").read_text())
    assert content["data"]["corruption"]["patches"] == 0.3


def test_single_conditions_and_other_metrics(runs, squares, tmp_path, capsys):
    assert evaluate("--model", runs["movies"], "--missing", "text:1", "image:0.5", "--out", tmp_path / "movies") == 0
    rows = list(csv.DictReader((tmp_path / "movies/results.csv").open()))
    assert [row["missing"] for row in rows] == ["none", "text", "text", "text", "image", "image", "image"]
    assert {"macro_f1", "macro_f1_per_movie", "micro_f1"} <= set(rows[0])
    assert evaluate("--model", runs["auroc"], "--out", tmp_path / "memes", "--split", "validation") == 0
    assert squares[-1][1] == "validation"
    assert "AUROC" in capsys.readouterr().out
    assert "a movie counted once" in (tmp_path / "movies/report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--missing", "both"], "missing: got 'both', expected KIND:RATE"),
        (["--grid", "--types", "audio"], "kind: got 'audio', expected one of 'text', 'image', 'both'"),
        (["--grid", "--rates", "70"], "rate: got 70.0, expected a share between 0 and 1"),
        (["--rates", "0.5"], "rates: got [0.5] without --grid"),
        (["--seeds", "0"], "seeds: got 0, expected a whole number of at least 1"),
        (["--device", "abacus"], "device: got 'abacus', expected one that is there"),
    ],
)
def test_wrong_arguments_are_one_line(runs, squares, tmp_path, capsys, arguments, message):
    assert evaluate("--model", runs["mora"], "--out", tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"mora evaluate: {message}")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_runs_that_cannot_be_compared(runs, squares, tmp_path, capsys):
    assert evaluate("--model", runs["mora"], runs["auroc"], "--out", tmp_path / "out") == 2
    assert "has 2 classes and auroc" in capsys.readouterr().err
    assert evaluate("--model", runs["mora"], runs["mora"], "--out", tmp_path / "out") == 2
    assert "twice, expected each run once" in capsys.readouterr().err
    assert evaluate("--model", tmp_path / "nowhere", "--out", tmp_path / "out") == 2
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert evaluate("--model", runs["mora"], "--out", tmp_path / "file") == 2
    assert "is a file, expected a folder" in capsys.readouterr().err


def result(model, kind, rate, seed, value):
    return Result(
        model, model, "d", "test", kind, rate, None, seed, None, 4, 4, 0, 0, "accuracy", {"accuracy": value}, ""
    )


def test_means_of_the_three_types_go_seed_by_seed():
    results = [result("a", NOTHING, 0.0, None, 1.0)]
    values = {"text": (0.1, 0.4), "image": (0.2, 0.5), "both": (0.3, 0.6)}
    results += [result("a", kind, 0.7, seed, value[seed]) for kind, value in values.items() for seed in (0, 1)]
    mean = Summary(results).mean_of_kinds("a", 0.7)
    assert mean == (pytest.approx(0.35), pytest.approx(0.3 / 2**0.5))
    (table,) = tables(results)
    assert table.rows[-1] == ["mean of the three", "100.00", "35.00 ± 21.21"]
    assert Summary(results[:3]).mean_of_kinds("a", 0.7) is None


def test_the_best_of_each_column_is_marked():
    results = [result(model, NOTHING, 0.0, None, value) for model, value in (("a", 0.5), ("b", 0.25), ("c", 0.5))]
    results += [result(model, "text", 0.5, 0, value) for model, value in (("a", 0.1), ("b", 0.2), ("c", 0.1))]
    (table,) = tables(results)
    assert table.best == {(0, 1), (2, 1), (1, 2)}
    assert "| b | 25.00 | **20.00** |" in table.markdown()
    assert everything(results).rows[0][:3] == ["a", "nothing taken away", ""]


def test_markdown_columns_line_up():
    text = Table("t", ["a", "b", "c"], [["x", "y", "1"]], set(), words=2).markdown()
    assert text.splitlines()[1] == "| --- | --- | ---: |"
    assert all(len(re.findall(r"\|", line)) == 4 for line in text.splitlines())
