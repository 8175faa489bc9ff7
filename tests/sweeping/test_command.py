"""`mora sweep`: how options are read, and a sweep from a table of one's own to a merged model."""

import csv
import json

import pytest
from PIL import Image

from mora.cli import main, sweep
from mora.cli.parser import Parser
from mora.sweeping.space import Range

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30)}


def read(monkeypatch, *words):
    """The arguments of `mora.sweep` that some words mean."""
    found = {}
    monkeypatch.setattr("mora.sweeping.sweep.sweep", lambda **given: found.update(given))
    parser = Parser(prog="mora")
    sweep.add(parser.add_subparsers(parser_class=Parser))
    options = parser.parse_args(["sweep", "--data", "D", "--out", "S", *words])
    options.command = "sweep"
    sweep.run(options, "")
    return {name: value for name, value in found.items() if name not in ("data", "out")}


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        ("--lr 1e-3", {"lr": 1e-3}),
        ("--lr 1e-3 1e-2 --epochs 5", {"lr": [1e-3, 1e-2], "epochs": 5}),
        ("--rank 4 8", {"rank": [4, 8]}),
        ("--rank image=8 text=4", {"rank": {"image": 8, "text": 4}}),
        ("--rank 4 image=8 text=4 2", {"rank": [4, {"image": 8, "text": 4}, 2]}),
        ("--rank image=8 text=4 image=4 text=8", {"rank": [{"image": 8, "text": 4}, {"image": 4, "text": 8}]}),
        ("--alpha 'image=0.1 text=1' image=1 text=2",
         {"alpha": [{"image": 0.1, "text": 1.0}, {"image": 1.0, "text": 2.0}]}),
        ("--targets q,v q,k,v", {"targets": [("q", "v"), ("q", "k", "v")]}),
        ("--targets image=q,v text=q", {"targets": {"image": ("q", "v"), "text": ("q",)}}),
        ("--layers 2,3 3", {"layers": [(2, 3), (3,)]}),
        ("--adapt image=mora text=frozen image=frozen text=mora",
         {"adapt": [{"image": "mora", "text": "frozen"}, {"image": "frozen", "text": "mora"}]}),
        ("--betas 0.9 0.98", {"betas": (0.9, 0.98)}),
        ("--betas 0.9 0.98 0.9 0.999", {"betas": [(0.9, 0.98), (0.9, 0.999)]}),
        ("--missing train=both:0.5 train=both:0.7", {"missing": ["train=both:0.5", "train=both:0.7"]}),
        ("--method lora mora --limit 9", {"method": ["lora", "mora"], "limit": 9}),
        ("--lr 1e-4..1e-1 --dropout 0..0.5 --rank 2..16",
         {"lr": Range(1e-4, 1e-1, log=True), "dropout": Range(0.0, 0.5), "rank": Range(2, 16)}),
        ("--seeds 3 4 --search tpe --trials 9 --search-seed 1 --prune --jobs 2 --no-test",
         {"seeds": [3, 4], "search": "tpe", "trials": 9, "search_seed": 1, "prune": True, "jobs": 2, "test": False}),
        ("--extra-columns --preset food101", {"extra_columns": True, "preset": "food101"}),
    ],
)  # fmt: skip
def test_words_are_values_as_mora_train_reads_them(monkeypatch, words, meaning):
    import shlex

    assert read(monkeypatch, *shlex.split(words)) == meaning


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--rank 4 x", "rank: got 'x', expected an int"),
        ("--rank 4 image=8 text=x", "rank: got 'x', expected an int"),
        ("--lr 0.1 fast", "lr: got 'fast', expected float values"),
        ("--betas 0.9 0.98 0.9", "betas: got 3 words, expected 2 for each value"),
        ("--lr 1e-4..1e-1 0.5", "lr: got a range and 1 more values, expected one range or a list"),
        ("--lr 1..0.1", "lr: got 1.0 to 0.1, expected LOW..HIGH, two numbers that rise"),
        ("--lr 0..0.1", "lr: got 0 as the low end of a logarithmic one, expected LOW..HIGH"),
        ("--rank 1.5..4", "rank: got '1.5..4', expected LOW..HIGH"),
        ("--adapt mora", "adapt: got 'mora', expected TOWER=VALUE"),
    ],
)  # fmt: skip
def test_words_that_mean_nothing_are_refused(monkeypatch, words, message):
    with pytest.raises(ValueError, match="^" + message.replace(".", r"\.")):
        read(monkeypatch, *words.split())


@pytest.fixture
def shop(tmp_path):
    """A table of one's own with all three splits."""
    rows = []
    for split, count in (("train", 12), ("validation", 6), ("test", 6)):
        for number in range(count):
            label = list(COLOURS)[number % 2]
            image = f"{split}{number}.png"
            Image.new("RGB", (40, 40), COLOURS[label]).save(tmp_path / image)
            rows.append({"image": image, "text": f"thing {number}", "label": label, "split": split})
    with (tmp_path / "shop.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path / "shop.csv"


def test_from_a_table_to_a_merged_model(shop, tmp_path, monkeypatch, capsys):
    from mora.training import setup

    opened, open_dataset = [], setup.open_dataset
    monkeypatch.setattr(setup, "open_dataset", lambda d, s, **o: opened.append(s) or open_dataset(d, s, **o))
    out = tmp_path / "sweep"
    words = ["--data", str(shop), "--out", str(out), "--last-layers", "1", "--epochs", "1", "--device", "cpu"]
    assert main(["sweep", *words, "--lr", "1e-3", "1e-2", "--seeds", "0", "--no-test"]) == 0
    assert set(opened) == {"train", "validation"}, "with --no-test the test split is not even opened"
    assert main(["sweep", *words, "--lr", "1e-3", "1e-2", "--seeds", "0"]) == 0 and "test" in opened
    shown = capsys.readouterr().out
    assert "Best on validation: setting" in shown and "On the test split" in shown
    found = json.loads((out / "sweep.json").read_text())
    best = out / "runs" / f"{found['winner']['setting']:03}-seed0"
    assert main(["evaluate", "--model", str(best), "--out", str(tmp_path / "results"), "--seeds", "1"]) == 0
    scored = json.loads((tmp_path / "results" / "results.json").read_text())["cells"]
    assert scored[0]["figures"]["accuracy"] == pytest.approx(found["winner"]["test"]["0"]["accuracy"])
    assert main(["merge", "--model", str(best), "--out", str(tmp_path / "merged")]) == 0
    assert main(["sweep", *words, "--lr", "1e-3", "1e-1", "--seeds", "0"]) == 2
    assert "mora sweep: lr: " in (error := capsys.readouterr().err) and "[0.001, 0.01], this call has" in error
