"""Killed at any moment, a run goes on from its last checkpoint and ends in the same bits.

`MORA_KILLS=30` kills it 30 times, instead of 6.
"""

import json
import os
import random
import signal
import time

import pytest
import torch

from mora.system import lock
from mora.system.files import read_tensors
from mora.training import Trainer, load_run
from mora.training.checkpoints import checkpoint_files
from tests.processes import FRESH, begin
from tests.training import fakes

RECIPE = dict(epochs=4, batch=4, checkpoint_minutes=1e-4, accumulation=2)
KILLS = int(os.environ.get("MORA_KILLS", "6"))


def weights(folder):
    return {path.name: read_tensors(path)[0] for path in sorted((folder / "best").glob("*.safetensors"))}


def same(one, other):
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys() and first
    for name, tensors in first.items():
        assert tensors.keys() == second[name].keys()
        for key, tensor in tensors.items():
            assert torch.equal(tensor, second[name][key]), key


def events(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def work(folder, fields):
    torch.set_num_threads(1)
    fakes.trainer(folder, **fields).fit(resume=True)


@pytest.fixture(scope="module")
def processes():
    """Fresh processes that have imported everything already."""
    begin()
    return FRESH


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing disturbed, by its settings."""
    done = {}

    def run(**fields):
        key = tuple(sorted(fields.items()))
        if key not in done:
            done[key] = tmp_path_factory.mktemp("whole") / "run"
            fakes.trainer(done[key], **fields).fit()
        return done[key]

    return run


def lines(folder):
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def run_and_kill(processes, folder, more, pause, fields=RECIPE):
    """Start the run and kill -9 it a moment after it wrote so many lines more; whether it was still at it."""
    process = processes.Process(target=work, args=(folder, fields))
    process.start()
    before = lines(folder)
    while process.is_alive() and (more is None or lines(folder) < before + more):
        time.sleep(0.001)
    time.sleep(pause)
    running = process.is_alive()
    if running:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert running or process.exitcode == 0
    return running


def test_killed_at_random_moments(processes, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    fields = {**RECIPE, "epochs": 4 * max(1, KILLS // 6)}
    run_and_kill(processes, whole, None, 0, fields)
    draw, kills = random.Random(7), 0
    while kills < KILLS and run_and_kill(processes, broken, draw.randint(1, 5), draw.uniform(0, 0.03), fields):
        kills += 1
    print(f"train: killed {kills} times")
    assert kills >= min(3, KILLS)
    run_and_kill(processes, broken, None, 0, fields)
    same(whole, broken)
    assert events(whole) == events(broken)
    results = [json.loads((folder / "result.json").read_text()) for folder in (whole, broken)]
    for result in results:
        del result["seconds"], result["folder"]
    assert results[0] == results[1]
    assert not list(broken.rglob(".*"))


class StopError(Exception):
    pass


def stop_at(trainer, step):
    """Let the trainer die just before a step."""
    take = trainer.engine.step

    def stopping(*given):
        if trainer.progress.step == step:
            raise StopError
        return take(*given)

    trainer.engine.step = stopping
    with pytest.raises(StopError):
        trainer.fit()


@pytest.mark.parametrize(("method", "step"), [("mora", 0), ("mora", 5), ("mora", 7), ("mora", 14), ("lora", 4)])
def test_stopped_before_any_step(tmp_path, whole, method, step):
    fields = {**RECIPE, "method": method, "epochs": 3, "dropout": 0.3}
    stop_at(fakes.trainer(tmp_path / "broken", **fields), step)
    resumed = fakes.trainer(tmp_path / "broken", **fields)
    torch.randn(5)  # generators are restored, whatever they did before
    resumed.fit(resume=True)
    same(whole(**fields), tmp_path / "broken")
    assert events(whole(**fields)) == events(tmp_path / "broken")


def test_best_goes_back_to_that_of_the_checkpoint(tmp_path, whole):
    """Killed between a better epoch and its checkpoint, the run must not keep what it will find again."""
    fields = {**RECIPE, "checkpoint_minutes": 60.0}
    trainer = fakes.trainer(tmp_path / "broken", **fields)
    write = trainer.checkpoint

    def dying():
        if trainer.progress.epoch == 3:  # epoch 2 is over, its checkpoint not written
            raise StopError
        write()

    trainer.checkpoint = dying
    with pytest.raises(StopError):
        trainer.fit()
    fakes.trainer(tmp_path / "broken", **fields).fit(resume=True)
    same(whole(**RECIPE), tmp_path / "broken")


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, whole):
    stop_at(fakes.trainer(tmp_path / "broken", **RECIPE), 12)
    files = checkpoint_files(tmp_path / "broken" / "checkpoints")
    assert len(files) == 2
    files[-1].write_bytes(files[-1].read_bytes()[:1000])
    fakes.trainer(tmp_path / "broken", **RECIPE).fit(resume=True)
    same(whole(**RECIPE), tmp_path / "broken")
    for path in (files := checkpoint_files(tmp_path / "broken" / "checkpoints")):
        path.write_bytes(b"")
    (tmp_path / "broken" / "result.json").unlink()
    with pytest.raises(ValueError, match=f"damaged checkpoints only.*{files[0].name}"):
        fakes.trainer(tmp_path / "broken", **RECIPE).fit(resume=True)


def test_a_finished_run_is_left_as_it_is(tmp_path):
    first = fakes.trainer(tmp_path / "run").fit()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    again = fakes.trainer(tmp_path / "run").fit(resume=True)
    assert again == first
    assert {path: path.read_bytes() for path in before if path.name != "train.log"} == {
        path: content for path, content in before.items() if path.name != "train.log"
    }


def test_resume_where_there_is_nothing_begins(tmp_path):
    result = fakes.trainer(tmp_path / "run").fit(resume=True)
    assert result.epochs == 2
    assert load_run(tmp_path / "run", backbone=fakes.backbone()).result["epoch"] == result.best_epoch


def test_a_wait_for_another_machine_is_said_before_models_are_loaded(tmp_path, monkeypatch):
    owner = {"host": "node7", "pid": 41, "since": "2026-01-01 00:00:00 UTC", "kernel": "another", "token": "x"}
    monkeypatch.setattr(lock, "LOOK", 0.05)
    monkeypatch.setattr(lock, "SILENCE", 0.3)
    (tmp_path / ".lock").write_text(json.dumps(owner))
    os.utime(tmp_path / ".lock", (time.time() + 1000,) * 2)
    console = fakes.Silent()
    fakes.trainer(tmp_path, console=console)
    assert "waiting to see whether process 41 on node7" in console.lines[0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(lr=0.5), r"lr: .*started with 0.01, this call has 0.5"),
        (dict(epochs=7), "epochs: .*started with 2, this call has 7"),
        (dict(rank=2), "mora.rank: .*started with 4, this call has 2"),
        (dict(method="lora"), "method: .*'mora', this call has 'lora'"),
        (dict(missing="both:0.6"), "missing.train: .*'both:0.5', this call has 'both:0.6'"),
        (dict(precision="bf16"), "precision: .*'fp32', this call has 'bf16'"),
    ],
)
def test_another_config_is_refused(tmp_path, changed, message):
    stop_at(fakes.trainer(tmp_path / "run"), 2)
    with pytest.raises(ValueError, match=message):
        fakes.trainer(tmp_path / "run", **changed).fit(resume=True)


def test_other_data_and_other_weights_are_refused(tmp_path):
    stop_at(fakes.trainer(tmp_path / "run"), 2)
    other = fakes.splits()
    other["validation"].fingerprint = "changed"
    with pytest.raises(ValueError, match="data.fingerprints.validation: .*this call has 'changed'"):
        fakes.trainer(tmp_path / "run", datasets=other).fit(resume=True)
    with pytest.raises(ValueError, match="backbone.sha256"):
        fakes.trainer(tmp_path / "run", model=fakes.open_clip_model(seed=5)).fit(resume=True)


def test_a_run_folder_is_not_overwritten(tmp_path):
    fakes.trainer(tmp_path / "run").fit()
    with pytest.raises(ValueError, match="out: got .*run, which holds a run, expected a new folder, or --resume"):
        fakes.trainer(tmp_path / "run").fit()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="which is not empty"):
        fakes.trainer(tmp_path / "other").fit()
    with pytest.raises(ValueError, match=r"which is not empty \(thesis.tex\) and holds no run"):
        fakes.trainer(tmp_path / "other").fit(resume=True)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match="which is a file"):
        fakes.trainer(tmp_path / "other" / "thesis.tex").fit()


@pytest.mark.parametrize("resume", [False, True])
def test_what_a_kill_left_of_the_first_file_is_no_run(tmp_path, resume):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.json.0123456789abcdef").write_text("{")
    fakes.trainer(tmp_path / "run", epochs=1).fit(resume=resume)
    assert not list((tmp_path / "run").glob(".*"))


def test_what_moves_no_number_may_change(tmp_path):
    stop_at(fakes.trainer(tmp_path / "run", log_every=1), 2)
    fakes.trainer(tmp_path / "run", log_every=7, checkpoint_minutes=1.0, workers=0).fit(resume=True)
    assert isinstance(fakes.trainer(tmp_path / "x"), Trainer)
