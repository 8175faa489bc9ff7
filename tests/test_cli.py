"""The command line under any encoding, with names that mean harm, and with values that nobody means."""

import csv
import io
import json
import os
import subprocess
import sys

import pytest
from matplotlib.figure import Figure
from PIL import Image

from mora.cli import main
from mora.evaluation import plot
from mora.evaluation.grid import NOTHING, Result
from tests.data import synthetic
from tests.evaluation.fakes import write_run

CLASSES = ["[red]café[/red] ✓", "a<b>\tc", "=1+1", "\x1b[31m\u202eevil\n# no heading"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run, in a folder and on data with names of the kind."""
    run = write_run(tmp_path_factory.mktemp("cli") / "_run$x$ [b]")
    config = json.loads((run / "config.json").read_text())
    config["data"] |= {"classes": CLASSES, "name": "=da|ta\n`x` [/b]", "source": "so`urce\n.csv"}
    (run / "config.json").write_text(json.dumps(config))
    return run


@pytest.fixture
def stream(monkeypatch):
    """Standard output as a pipe of some encoding; gives its bytes."""

    def make(encoding):
        raw = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding=encoding))
        return lambda: sys.stdout.flush() or raw.getvalue()

    return make


def manifest(folder):
    """Rows of all classes of the run."""
    path = folder / "=so`urce [b].jsonl"
    rows = [{"text": f"word {index}", "label": CLASSES[index % 4]} for index in range(12)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_the_answer_is_not_lost_to_an_encoding(folder, stream):
    """A user's terminal on Windows, or a pipe in a job without a locale."""
    done = subprocess.run(
        [sys.executable, "-m", "mora.cli", "predict", "--model", folder, "--text", "a"],
        capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == b"", done.stderr
    assert len(done.stdout.splitlines()) == 5 and b"caf\\xe9" in done.stdout and b"\\u2713" in done.stdout
    out = stream("cp1252")
    assert main(["predict", "--model", str(folder), "--text", "a"]) == 0
    assert len(out().splitlines()) == 5 and b"caf\xe9" in out() and b"\\u2713" in out()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8", "utf-16"])
def test_json_is_whole_under_every_encoding(folder, stream, encoding):
    out = stream(encoding)
    assert main(["predict", "--model", str(folder), "--text", "a", "--json"]) == 0
    assert {answer["name"] for answer in json.loads(out().decode(encoding))["answers"]} == set(CLASSES)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_data_check_and_errors(stream, tmp_path, capsys, encoding):
    data = tmp_path / "maß ✓.csv"
    synthetic.manifest(tmp_path).rename(data)
    out = stream(encoding)
    assert main(["data", "check", str(data)]) == 0
    assert len(out()) > 100
    assert main(["data", "check", str(tmp_path / "✓.csv")]) == 2


def test_predict_prints_a_line_a_class(folder, capsys):
    assert main(["predict", "--model", str(folder), "--text", "a"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 5 and "\\x1b[31m\\u202eevil\\n# no heading" in out and "\x1b" not in out


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_evaluate_shows_names_as_they_are(folder, tmp_path, stream, encoding):
    source, results, other = manifest(tmp_path), tmp_path / "out [/b]", tmp_path / "=other"
    write_run(other, seed=1)
    config = json.loads((other / "config.json").read_text())
    config["data"]["classes"] = CLASSES
    (other / "config.json").write_text(json.dumps(config))
    out = stream(encoding)
    command = ["evaluate", "--model", folder, other, "--data", source, "--split", "all", "--out", results]
    assert main([*map(str, command), "--missing", "image:0.5", "--seeds", "1"]) == 0
    shown = out().decode(encoding)
    assert "_run$x$ [b]" in shown and "out [/b]" in "".join(shown.split("\n"))
    rows = list(csv.DictReader((results / "results.csv").open()))
    assert {row["model"] for row in rows} == {"_run$x$ [b]", "'=other"}
    assert all(row["data"].startswith("'=so") for row in rows)
    report = (results / "report.md").read_text()
    assert r"| \_run\$x\$ \[b\] |" in report and "``" in report.split("Data: ")[1]
    with Image.open(results / "plot.png") as plot:
        assert plot.size[0] > 100
    assert {model["label"] for model in json.loads((results / "results.json").read_text())["models"]} == {
        "_run$x$ [b]", "=other",
    }  # fmt: skip


def test_the_model_card_shows_names_as_they_are(folder, tmp_path, capsys):
    assert main(["merge", "--model", str(folder), "--out", str(tmp_path / "a\nb [/x]")]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 2
    card = (tmp_path / "a\nb [/x]" / "README.md").read_text()
    title = next(line for line in card.splitlines() if line.startswith("# "))
    assert title == r"# =da\|ta\\n\`x\` \[/b\]: tiny, adapted by mora, merged"
    assert card.count("\n# ") == 1 and "Source: ``so`urce\\n.csv``" in card
    front = card.split("---")[1]
    assert front.strip().splitlines()[0] == "license: apache-2.0"


def test_a_legend_shows_names_that_matplotlib_would_hide(monkeypatch):
    labels = ("_hidden", "$\\bad{$", "a\nb")
    given = {"method": "mora", "data": "x", "split": "test", "kind": NOTHING, "rate": 0.0, "both_ratio": None}
    given |= {"seed": None, "table": None, "rows": 1, "complete": 1, "text_missing": 0, "image_missing": 0}
    given |= {"metric": "accuracy", "figures": {"accuracy": 0.5}, "lacks_sha256": ""}
    seen = []
    save = Figure.savefig

    def look(figure, *arguments, **named):
        seen.extend(text.get_text() for text in figure.legends[0].get_texts())
        save(figure, *arguments, **named)

    monkeypatch.setattr(Figure, "savefig", look)
    plot.draw([Result(model=label, **given) for label in labels], "$\\bad{$ on x\nin %")
    assert seen == ["_hidden", "$\\bad{$", "a\\nb"]


LONG = "9" * 25
ODD = [
    "",
    " ",
    "nan",
    "1e400",
    "-1",
    "9" * 5000,
    "9" * 25,
    "a\0b",
    "\udce9",
    "\x1b[31m",
    "a\nb",
    "x" * 5000,
    "/dev/zero",
]
PREDICT = {"--model": None, "--image": None, "--top": {LONG}, "--device": None}


@pytest.mark.parametrize("option", PREDICT)
def test_odd_values_of_predict(folder, capsys, option):
    for value in ODD:
        if value in (PREDICT[option] or ()):
            continue
        arguments = {"--model": str(folder), "--text": "a", option: value}
        refused(capsys, "predict", [f"{name}={given}" for name, given in arguments.items()], value)


TRAIN = [
    "--rank", "--common-rank", "--alpha", "--dropout", "--targets", "--last-layers", "--lora-scale", "--epochs",
    "--batch", "--lr", "--eps", "--warmup", "--seed", "--split-seed", "--method", "--backbone", "--pretrained",
    "--missing", "--tables", "--precision", "--device", "--metric", "--savings", "--cache", "--cache-gb",
    "--tracker", "--preset", "--layers", "--pair-layers", "--adapt",
]  # fmt: skip
FINE = {
    "--alpha": {LONG}, "--lr": {LONG}, "--eps": {LONG}, "--lora-scale": {LONG},
    "--cache-gb": {LONG}, "--missing": {" ", ""}, "--savings": {" ", ""},
}  # fmt: skip


@pytest.mark.parametrize("option", TRAIN)
def test_odd_values_of_train(tmp_path, capsys, option, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in ODD:
        if value not in FINE.get(option, ()):
            arguments = {"--data": "nowhere.csv", "--out": str(tmp_path / "run"), option: value}
            refused(capsys, "train", [f"{name}={given}" for name, given in arguments.items()], value)
    assert not (tmp_path / "run").exists()


def refused(capsys, command, arguments, value):
    """Exit code 2 and one line that a terminal can show."""
    try:
        code = main([command, *arguments])
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr().err
    assert code == 2, value
    assert said.count("\n") == 1 and said[:-1].isprintable() and len(said) < 2300, said
    assert said.startswith(f"mora {command}: ") and "--traceback shows" not in said, said


def test_an_error_that_nobody_foresaw_is_one_line_too(monkeypatch, capsys):
    def fail(options, command):
        raise KeyError("a\nb")

    monkeypatch.setattr("mora.cli.doctor.run", fail)
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err == "mora doctor: KeyError: 'a\\nb' (--traceback shows where)\n"
    with pytest.raises(KeyError):
        main(["doctor", "--traceback"])


def test_a_text_that_is_no_unicode(folder, capsys):
    assert main(["predict", "--model", str(folder), "--text", "caf\udce9"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("mora predict: text: got 'caf\\udce9', character 4 of which is half of a surrogate pair")


def test_a_picture_that_is_no_file(folder, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate((1 << 28) + 1)
    said = {"pipe": "a pipe", "link": "a device", "folder": "a folder", "large": "268,435,457 bytes, expected at most"}
    for name, words in said.items():
        assert main(["predict", "--model", str(folder), "--image", str(tmp_path / f"{name}.png")]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"mora predict: image: got {tmp_path / name}.png") and words in error
