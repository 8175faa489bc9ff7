"""Folders of adapters, and `mora adapters`: what it lists, takes, refuses, and writes."""

import copy
import json
import shutil

import open_clip
import pytest
import torch

import mora
from mora import tiny
from mora.checkpoint.shelf import adapters_in, add_saved
from mora.cli import main
from mora_kernels.testing import assert_parity
from tests.evaluation.fakes import write_run
from tests.mora.models import open_clip_model, randomise


@pytest.fixture(scope="module")
def model():
    found, _, _ = tiny.load()
    mora.patch(found, name="films", rank=2)
    mora.add_adapter(found, "food", rank=3, targets=("q", "k", "v"), alpha={"image": 0.1, "text": 0.02})
    for number, name in enumerate(("films", "food")):
        with mora.using(found, name):
            randomise(found, number)
    return found.eval()


@pytest.fixture
def shelf(model, tmp_path):
    return mora.save_adapters(model, tmp_path / "shelf")


def said(capsys, *arguments):
    """What a command that is refused says, on one line."""
    capsys.readouterr()  # of what came before
    assert main(["adapters", *map(str, arguments)]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1
    return error


def test_list(shelf, capsys):
    assert main(["adapters", "list", str(shelf)]) == 0
    heads, films, food = capsys.readouterr().out.splitlines()
    assert heads.split() == ["adapter", "rank", "alpha", "targets", "blocks", "parameters", "SHA-256"]
    assert films.split()[:3] == ["films", "2+2", "0.01"] and food.split()[:4] == [
        "food",
        "3+3",
        "image=0.1",
        "text=0.02",
    ]
    assert "image 3 4; text 2 3" in films
    assert main(["adapters", "list", str(shelf / "food")]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[0] == "food"


def test_add_and_delete(shelf, tmp_path, capsys):
    other = tmp_path / "new"
    assert main(["adapters", "add", str(other), "--from", str(shelf / "food")]) == 0
    assert main(["adapters", "add", str(other), "--from", str(shelf), "--name", "films"]) == 0
    assert [*adapters_in(other)] == ["films", "food"]
    assert adapters_in(other)["food"].sha256 == adapters_in(shelf)["food"].sha256
    assert "name: got 'food', which is in" in said(capsys, "add", other, "--from", shelf / "food")
    assert "name: got '', expected one of the folder's adapters: films, food" in said(
        capsys, "add", other, "--from", shelf
    )
    assert "name: got 'a/b'" in said(capsys, "add", other, "--from", shelf / "food", "--name", "a/b")
    assert "folder: got" in said(capsys, "add", other / "food", "--from", shelf / "food", "--name", "x")

    assert main(["adapters", "delete", str(other), "food"]) == 0
    assert [*adapters_in(other)] == ["films"]
    assert "name: got 'food', expected one of the adapters in" in said(capsys, "delete", other, "food")
    (other / "films" / "notes.txt").write_text("mine")
    assert "holds notes.txt beside its adapter" in said(capsys, "delete", other, "films")
    assert (other / "films" / "adapter_config.json").is_file()


def test_an_adapter_of_other_weights_and_a_damaged_one(shelf, tmp_path, capsys):
    mora.save_adapter(mora.patch(open_clip_model(), last_layers=1), tmp_path / "other")
    changed, _, _ = tiny.load()
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.1)
    mora.save_adapter(mora.patch(changed), tmp_path / "changed")
    before = sorted(path.name for path in shelf.iterdir())
    error = said(capsys, "add", shelf, "--from", tmp_path / "changed")
    assert "source: " in error and "was trained on other base weights than 'films'" in error and "image." in error
    assert [name for name in sorted(path.name for path in shelf.iterdir()) if name[0] != "."] == before
    weights = shelf / "food" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    assert "its SHA-256 is not the one in" in said(capsys, "list", shelf)
    assert "folder: got" in said(capsys, "list", tmp_path / "nowhere")


def test_combine(model, shelf, tmp_path, capsys):
    """As `mora.combine` in Python, loaded by open_clip alone."""
    out = tmp_path / "plain"
    command = ["adapters", "combine", str(shelf), "--weights", "films=0.7, food=-0.3", "--out", str(out)]
    assert main(command) == 0
    assert "0.7 films + -0.3 food: written to" in capsys.readouterr().out
    again = open_clip.create_model(f"local-dir:{out}").eval()
    want = mora.combine(copy.deepcopy(model), {"films": 0.7, "food": -0.3})
    for name, tensor in want.state_dict().items():
        assert_parity(name, again.state_dict()[name], tensor, {torch.float32: 1e-6})
    about = json.loads((out / "combined.json").read_text())
    assert about["weights"] == {"films": 0.7, "food": -0.3} and about["max_difference"] < 1e-4
    assert about["adapters"]["food"]["sha256"] == adapters_in(shelf)["food"].sha256
    assert main(command) == 0, "an earlier result is replaced"


def test_combine_refuses(shelf, tmp_path, capsys):
    out = tmp_path / "plain"
    for weights, message in (
        ("films", "weights: got 'films' in 'films', expected NAME=NUMBER"),
        ("films=much", "weights: got 'films=much'"),
        ("films=1,films=2", "weights: got 'films' twice"),
        ("dishes=1", "weights: got 'dishes', expected one of the folder's adapters: films, food"),
        ("films=nan", "weights['films']: got nan, expected a finite number"),
    ):
        assert message in said(capsys, "combine", shelf, "--weights", weights, "--out", out), weights
        assert not out.exists()
    assert "format: got 'onnx'" in said(
        capsys, "combine", shelf, "--weights", "films=1", "--out", out, "--format", "onnx"
    )
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert "out: got" in said(capsys, "combine", shelf, "--weights", "films=1", "--out", out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_a_run_is_a_folder_of_one(tmp_path, capsys):
    """Its adapter has the run's name; combining it alone with weight 1 is merging it."""
    run = write_run(tmp_path / "badges", method="mora")
    assert [*adapters_in(run)] == ["badges"]
    assert main(["adapters", "add", str(tmp_path / "shelf"), "--from", str(run)]) == 0
    assert main(["adapters", "combine", str(run), "--weights", "badges=1", "--out", str(tmp_path / "one")]) == 0
    assert main(["merge", "--model", str(run), "--out", str(tmp_path / "two")]) == 0
    one, two = (open_clip.create_model(f"local-dir:{tmp_path / name}").state_dict() for name in ("one", "two"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    linear = write_run(tmp_path / "plain", method="linear")
    assert "expected adapters in folders of their names" in said(capsys, "list", linear)


def test_nothing_is_left_of_a_refused_copy(shelf, tmp_path):
    shutil.rmtree(shelf / "films")
    with pytest.raises(ValueError, match="^name: got 'food', which is in"):
        add_saved(shelf, shelf / "food")
    assert [path.name for path in shelf.iterdir() if path.name[0] != "."] == ["food"]
