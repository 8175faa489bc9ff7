"""The diagnosis of a run: what its folder keeps, words at its end, `mora inspect`."""

import json
import math
import shutil

import pytest
import torch

import mora
from mora.cli import main
from mora.diagnosis.history import history_of
from mora.evaluation import inspection
from mora.evaluation.inspection import inspect_run
from mora.runs.run import METRICS, START, load_run
from mora.system.files import read_tensors
from tests.diagnosis import dense
from tests.training import fakes


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(run folder, adapters before its first step, what the training said)."""
    folder, console = tmp_path_factory.mktemp("diagnosis") / "run", fakes.Silent()
    given = dict(epochs=4, missing="none", init="official")  # the start that a run has to keep to know it
    trainer = fakes.trainer(folder, fakes.splits(24), console=console, **given)
    start = {name: tensor.clone() for name, tensor in mora.adapter_state_dict(trainer.model.model).items()}
    trainer.fit()
    return folder, start, [line for line in console.lines if line.startswith("diagnosis: ")]


def inspected(folder, **fields):
    return inspect_run(folder, backbone=fakes.backbone(), **fields)


def test_the_run_keeps_the_common_factors_as_they_were_drawn(trained):
    folder, start, _ = trained
    kept, _ = read_tensors(folder / START)
    assert set(kept) == {name for name in start if name.startswith("common.")}
    assert all(torch.equal(tensor, start[name]) for name, tensor in kept.items())


def test_its_figures_are_those_since_the_first_step(trained):
    folder, start, _ = trained
    found = inspected(folder, dataset=fakes.splits()["validation"])
    model = load_run(folder, backbone=fakes.backbone()).model.model
    for one in found.projections:
        figures, _ = dense.expected(model, one.name, start)
        for field in ("start_move", "learned_move", "common_moved", "learned_rank"):
            assert getattr(one, field) == pytest.approx(figures[field], rel=1e-5), (one.name, field)
    events = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    assert list(found.history.losses) == [event["loss"] for event in events if event["event"] == "epoch"]
    assert (found.history.epochs, found.history.lr) == (4, 1e-2)
    assert [one.rows for one in found.behaviour.drifts] == [15, 15]
    assert found.behaviour.zero_shot.classes == 3 and found.behaviour.heads[0].reach > 0


def test_a_training_ends_with_its_words(trained):
    folder, _, said = trained
    words = inspected(folder).words()
    assert said[:-1] == [f"diagnosis: {line}" for line in words[:4] if "embeddings were not looked at" not in line]
    assert said[-1] == f"diagnosis: mora inspect {folder} shows every projection" and len(said) <= 5
    assert said[0].startswith("diagnosis: adapters hardly moved (0.")
    assert said[0] in (folder / "train.log").read_text().replace("\n", " ")


def test_data_that_is_gone_is_said_and_data_that_was_asked_for_is_an_error(trained):
    folder, *_ = trained
    assert "the run's data cannot be opened" in inspected(folder).words()[-1]
    assert inspected(folder, data="none").unseen is None
    with pytest.raises(ValueError, match="source: got nowhere"):
        inspected(folder, data="nowhere")
    with pytest.raises(ValueError, match="rows: got 0"):
        inspected(folder, rows=0)
    with pytest.raises(ValueError, match="prompt: got 'a photo', expected"):
        inspected(folder, prompt="a photo")


def test_a_run_of_an_earlier_version_does_not_know_its_learned_move(trained, tmp_path):
    folder, *_ = trained
    copied = tmp_path / "run"
    shutil.copytree(folder, copied)
    (copied / START).unlink()
    assert "the learned move is not known" in inspected(copied).words()[0]
    (copied / START).write_bytes(b"nothing")
    with pytest.raises(ValueError, match=START):
        inspected(copied)


@pytest.mark.parametrize("method", ["lora", "dora", "bitfit", "linear"])
def test_other_methods_get_what_applies(method, tmp_path):
    trainer = fakes.trainer(tmp_path / "run", fakes.splits(16), epochs=1, missing="none", method=method, lr=0.1)
    trainer.fit()
    assert not (tmp_path / "run" / START).exists()
    found = inspected(tmp_path / "run", dataset=fakes.splits()["validation"])
    assert found.method == method and not found.grams and len(found.behaviour.heads) == 2
    assert all((one.move < 1e-5) == (method == "linear") for one in found.behaviour.drifts)
    assert found.words() and found.history.epochs == 1
    if method not in ("lora", "dora"):
        assert found.projections == ()
        return
    run = load_run(tmp_path / "run", backbone=fakes.backbone())
    plain = dict(fakes.backbone().model.named_parameters())
    assert len(found.projections) == 8
    if method == "lora":
        named = run.model.model.named_modules()
        layers = [one for name, one in named if "visual.transformer.resblocks.3" in name and hasattr(one, "lora_A")]
        layer = layers[-1]  # of q and v
        a, b = (dense.array(part["default"].weight) for part in (layer.lora_A, layer.lora_B))
        packed = dense.array(plain["visual.transformer.resblocks.3.attn.in_proj_weight"])
        weight, one = packed[128:], next(p for p in found.projections if p.name == "image.3.v")
        move = math.sqrt(((b @ a) ** 2).sum() / (weight**2).sum())
        assert one.learned_move == one.total_move == pytest.approx(move, rel=1e-4) and one.start_move == 0
        assert one.effective_rank == pytest.approx(dense.entropy_rank(b @ a), rel=1e-3) and one.effective_rank <= 4.01
    assert found.projections[0].common_new is None


def test_a_log_that_is_no_log(trained, tmp_path):
    config = json.loads((trained[0] / "config.json").read_text())
    assert history_of(tmp_path, config, 1) is None
    for text in ('{"event": "epoch", "loss": 1.0}', '{"event": "epoch", "loss": "x", "validation": {"accuracy": 1}}'):
        (tmp_path / METRICS).write_text(text)
        with pytest.raises(ValueError, match=r"line 1: got no loss and no accuracy"):
            history_of(tmp_path, config, 1)
    (tmp_path / METRICS).write_text("{")
    with pytest.raises(ValueError, match=METRICS):
        history_of(tmp_path, config, 1)


def test_the_command(trained, tmp_path, capsys, monkeypatch):
    folder, *_ = trained
    monkeypatch.setattr(inspection, "load_run", lambda path, device, _: load_run(path, device, fakes.backbone()))
    assert main(["inspect", str(folder), "--data", "none", "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "image.3.v" in shown and "- adapters hardly moved" in shown
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(inspection.FILES)
    assert (tmp_path / "out" / "diagnosis.txt").read_text() in shown
    assert main(["inspect", str(folder), "--data", "none", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert main(["inspect", str(tmp_path)]) == 2 and "expected a run folder" in capsys.readouterr().err
