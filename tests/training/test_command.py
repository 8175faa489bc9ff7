"""`mora train` on copies of the published data sets and on manifests; what a wrong call says."""

import csv
import json
import re

import pytest

import mora
from mora.cli import main
from mora.training import load_run
from tests.data import synthetic

QUICK = ["--epochs", "2", "--batch", "8", "--device", "cpu"]


def train(capsys, *arguments):
    code = main(["train", *map(str, arguments)])
    return code, capsys.readouterr().err


def result(folder):
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize(
    ("name", "metric", "classes"),
    [("mmimdb", "macro_f1", 23), ("food101", "accuracy", 101), ("hateful_memes", "auroc", 2)],
)
def test_published_data_sets(tmp_path, capsys, name, metric, classes):
    data = synthetic.arrow(tmp_path, name)
    run = tmp_path / "run"
    code, said = train(capsys, "--data", data, "--out", run, "--preset", name, "--missing", "both:0.7", *QUICK)
    assert code == 0, said
    config = json.loads((run / "config.json").read_text())
    assert config["data"]["metric"] == metric and len(config["data"]["classes"]) == classes
    assert config["token_policy"] == "official"
    assert config["mora"]["targets"] == list(mora.PRESETS[name].targets)
    assert config["train"]["weight_decay"] == (0.1 if name == "hateful_memes" else 0.02)
    assert set(result(run)["test"]) >= {metric}
    assert f"validation {metric}" in said
    table = config["tables"]["train"]
    assert table["text missing"] + table["image missing"] == int(24 * 0.7)
    loaded = load_run(run)
    assert loaded.metric == metric and loaded.multi_label == (metric == "macro_f1")
    again, said = train(
        capsys, "--data", data, "--out", run, "--preset", name, "--missing", "both:0.7", *QUICK, "--resume"
    )
    assert again == 0 and "finished already" in said


def test_movies_are_scored_per_plot_and_per_movie(tmp_path, capsys):
    run = tmp_path / "run"
    assert train(capsys, "--data", synthetic.arrow(tmp_path, "mmimdb"), "--out", run, *QUICK)[0] == 0
    assert set(result(run)["test"]) == {"macro_f1", "micro_f1", "macro_f1_per_movie"}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_manifests(tmp_path, capsys, suffix):
    data = synthetic.manifest(tmp_path, suffix)
    code, said = train(
        capsys, "--data", data, "--out", tmp_path / "run", "--missing", "train=both:0.3,test=image:0.5", *QUICK
    )
    assert code == 0, said
    assert "without image" in said
    assert json.loads((tmp_path / "run" / "config.json").read_text())["tables"]["validation"]["missing"] == "none"


def test_mora_train_has_the_power_of_the_command(tmp_path, capsys):
    data = synthetic.manifest(tmp_path)
    assert train(capsys, "--data", data, "--out", tmp_path / "one", "--rank", "2", "--targets", "q,k", *QUICK)[0] == 0
    mora.train(data, tmp_path / "two", rank=2, targets=("q", "k"), epochs=2, batch=8, device="cpu")
    one, two = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("one", "two"))
    one["train"]["out"] = two["train"]["out"]
    assert one == two
    heads = [(tmp_path / name / "best" / "head.safetensors").read_bytes() for name in ("one", "two")]
    assert heads[0] == heads[1]


def test_one_tower_is_trained_and_the_other_stays(tmp_path, capsys):
    data, run = synthetic.manifest(tmp_path), tmp_path / "run"
    modes = "--adapt", "image=frozen", "text=mora", "--layers", "text=0,1", "image=1"
    code, said = train(capsys, "--data", data, "--out", run, *modes, "--missing", "both:0.3", *QUICK)
    assert code == 0, said
    config = json.loads((run / "config.json").read_text())["mora"]
    assert config["adapt"] == {"image": "frozen", "text": "mora"} and config["layers"] == {"image": [1], "text": [0, 1]}
    adapters = load_run(run).model.model.mora
    assert adapters.layers() == {"text": [0, 1]}
    assert main(["merge", "--model", str(run), "--out", str(tmp_path / "merged")]) == 0


def test_ranks_alphas_and_targets_by_tower(tmp_path, capsys):
    data, run = synthetic.manifest(tmp_path), tmp_path / "run"
    each = ["--rank", "image=2", "text=3", "--common-rank", "2", "--alpha", "text=0.1", "image=0.02"]
    each += ["--targets", "image=q,fc1", "text=k", "--last-layers", "image=1", "text=1"]
    code, said = train(capsys, "--data", data, "--out", run, *each, *QUICK)
    assert code == 0, said
    config = json.loads((run / "config.json").read_text())["mora"]
    assert config["rank"] == {"image": 2, "text": 3} and config["alpha"] == {"image": 0.02, "text": 0.1}
    assert config["targets"] == {"image": ["q", "fc1"], "text": ["k"]}
    adapters = load_run(run).model.model.mora
    assert [name.partition(".")[2] for name, _ in adapters.projections()] == ["4.q", "4.fc1", "3.k"]


def rewrite(data, change):
    """Change every row of a CSV manifest; `change` returns the row, or None to leave it out."""
    with data.open() as file:
        rows = [new for row in csv.DictReader(file) if (new := change(row)) is not None]
    header = list(rows[0]) if rows else ["image", "text", "label"]
    with data.open("w") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: {**row, "label": ""}, "label"),
        (lambda row: None, "no rows"),
        (lambda row: {**row, "price": "3"}, "price"),
        (lambda row: {key: row[key] for key in ("image", "text")}, "label"),
        (lambda row: {**row, "label": "apple"}, "apple"),
        (lambda row: {**row, "image": "", "text": row["text"] or "x"}, "image"),
        (lambda row: {**row, "text": ""} if row["image"] else None, "text"),
        (lambda row: {**row, "image": row["image"].replace("images/", "nowhere/")}, "nowhere/"),
    ],
    ids=["no-label", "empty", "column", "no-column", "one-class", "no-images", "no-texts", "path"],
)
def test_a_manifest_that_cannot_be_trained_on(tmp_path, capsys, change, said):
    data = synthetic.manifest(tmp_path)
    rewrite(data, change)
    code, message = train(capsys, "--data", data, "--out", tmp_path / "run", *QUICK)
    assert code == 2
    assert message.startswith("mora train: ") and message.count("\n") == 1 and said in message
    assert not (tmp_path / "run" / "best").exists()


def test_an_unreadable_image_is_named_or_left_out(tmp_path, capsys):
    data = synthetic.manifest(tmp_path)
    (tmp_path / "images" / "4.png").write_bytes(b"not a picture")
    code, message = train(capsys, "--data", data, "--out", tmp_path / "run", *QUICK)
    assert code == 2 and "4.png" in message.splitlines()[-1]
    assert train(capsys, "--data", data, "--out", tmp_path / "other", "--on-broken", "skip", *QUICK)[0] == 0
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    assert sum(map(len, config["data"]["broken"].values())) == 1
    assert "left out of train: 1 images that cannot be read: row 5" in (tmp_path / "other" / "train.log").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "nowhere.csv"], "nowhere.csv"),
        (["--data", "openmoji", "--backbone", "ViT-B-16-quickgelu"], "pretrained: got None .*'openai'"),
        (["--data", "openmoji", "--backbone", "ViT-B-16", "--pretrained", "best"], "pretrained: got 'best' .*'openai'"),
        (["--data", "openmoji", "--backbone", "ViT-B16"], "backbone: got 'ViT-B16', expected .*'ViT-B-16'"),
        (["--data", "openmoji", "--pretrained", "openai"], "pretrained: got 'openai' with backbone 'tiny'"),
        (["--data", "openmoji", "--preset", "imdb"], "preset: got 'imdb', expected one of 'mmimdb'"),
        (["--data", "openmoji", "--method", "prompt"], "method: got 'prompt'"),
        (["--data", "openmoji", "--missing", "both"], "missing: got 'both'"),
        (["--data", "openmoji", "--missing", "both:1.7"], "rate: got 1.7"),
        (["--data", "openmoji", "--missing", "train=both:0.7,rest=image:0.5"], "missing: got 'rest'"),
        (["--data", "openmoji", "--missing", "gone.pt"], "gone.pt"),
        (["--data", "openmoji", "--lr", "0"], "lr: got 0.0, expected a number above 0"),
        (["--data", "openmoji", "--epochs", "0"], "epochs: got 0"),
        (["--data", "openmoji", "--rank", "0"], "rank: got 0"),
        (["--data", "openmoji", "--last-layers", "9"], "last_layers: got 9"),
        (["--data", "openmoji", "--rank", "four"], "rank: got 'four', expected an int"),
        (["--data", "openmoji", "--alpha", "image=0.1", "0.2"], "alpha: got '0.2', expected TOWER=VALUE once for each"),
        (["--data", "openmoji", "--precision", "fp8"], "precision: got 'fp8'"),
        (["--data", "openmoji", "--device", "tpu"], "device: got 'tpu'"),
        (["--data", "openmoji", "--metric", "auroc"], "metric: got 'auroc'"),
        (["--data", "openmoji", "--token-policy", "new"], "token_policy: got 'new'"),
        (["--data", "openmoji", "--word-drop", "1.5"], "word_drop: got 1.5"),
        (["--data", "openmoji", "--tables", "gone"], "tables: got gone"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, capsys, arguments, said):
    code, message = train(capsys, "--out", tmp_path / "run", *arguments)
    assert code == 2
    assert message.count("\n") == 1
    assert re.search(said, message), message
    assert not (tmp_path / "run").exists()


def test_arguments_that_must_be_there(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--data", "openmoji"])
    assert "--out" in capsys.readouterr().err


def test_unknown_field():
    with pytest.raises(ValueError, match="learning_rate: got an unknown field, expected some of .*lr"):
        mora.train("openmoji", "nowhere", learning_rate=1.0)


def test_published_tables_are_read(tmp_path, capsys):
    import torch

    data, tables = synthetic.arrow(tmp_path, "food101"), tmp_path / "missing_tables"
    tables.mkdir()
    for split, rows in (("train", 24), ("val", 8), ("test", 8)):
        values = torch.zeros(rows)
        values[: int(rows * 0.5)] = 1.0
        torch.save(values, tables / f"food101_split{split}_missing_text_0.5.pt")
    run = tmp_path / "run"
    code, said = train(capsys, "--data", data, "--out", run, "--missing", "text:0.5", "--tables", tables, *QUICK)
    assert code == 0, said
    table = json.loads((run / "config.json").read_text())["tables"]["train"]
    assert table["seed"] is None and table["text missing"] == 12
    one = tables / "food101_splittrain_missing_text_0.5.pt"
    code, said = train(capsys, "--data", data, "--out", tmp_path / "two", "--missing", f"train={one}", *QUICK)
    assert code == 0, said


def test_evaluation_splits_a_manifest_as_training_did(tmp_path, capsys):
    """Another seed divides the rows another way: evaluated on rows it was trained on, a run would look too good."""
    data, run = synthetic.manifest(tmp_path, count=60), tmp_path / "run"
    assert train(capsys, "--data", data, "--out", run, "--split-seed", "3", *QUICK)[0] == 0
    assert main(["evaluate", "--model", str(run), "--out", str(tmp_path / "found")]) == 0
    found = json.loads((tmp_path / "found" / "results.json").read_text())
    config = json.loads((run / "config.json").read_text())
    assert found["data"]["fingerprint"] == config["data"]["fingerprints"]["test"]
    again = tmp_path / "again.csv"
    again.write_bytes(data.read_bytes())
    for spelled in (tmp_path / "run" / ".." / data.name, again):
        assert main(["evaluate", "--model", str(run), "--data", str(spelled), "--out", str(tmp_path / "found")]) == 0
        found = json.loads((tmp_path / "found" / "results.json").read_text())
        assert found["data"]["fingerprint"] == config["data"]["fingerprints"]["test"]
    assert "has changed" not in (tmp_path / "found" / "report.md").read_text()

    other = tmp_path / "other"
    assert train(capsys, "--data", data, "--out", other, "--split-seed", "4", *QUICK)[0] == 0
    assert main(["evaluate", "--model", str(run), str(other), "--out", str(tmp_path / "both")]) == 2
    assert "other, of which test has other rows than for" in capsys.readouterr().err

    rewrite(data, lambda row: {**row, "text": "new"} if row["text"] else row)
    assert main(["evaluate", "--model", str(run), "--out", str(tmp_path / "found")]) == 0
    assert "has changed since mora was trained" in " ".join(capsys.readouterr().out.split())
    assert "has changed since mora was trained" in (tmp_path / "found" / "report.md").read_text()
