"""A checkpoint is used whole and right, or not at all: digests, and every value against the run it belongs to."""

import copy
import errno
import json
import math
import os
import random
import shutil

import pytest
import torch

from mora.system.files import pack_tensors
from mora.training import checkpoints, load_run
from mora.training.checkpoints import State, checkpoint_files, read_checkpoint, unpack, write_checkpoint
from mora.training.trust import check_state
from tests.training import fakes
from tests.training.test_resume import events, same, stop_at

RECIPE = dict(epochs=3, batch=4, checkpoint_minutes=1e-4, accumulation=2)
STEP = 7  # in the second of three epochs of five steps


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A trainer that could go on, and the state it would go on from."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    stop_at(fakes.trainer(folder, **RECIPE), STEP)
    state, refused = read_checkpoint(folder / "checkpoints", lambda state: None)
    assert state.progress.step == STEP and not refused
    return fakes.trainer(folder, **RECIPE), state, folder


def test_a_right_state_passes(stopped):
    trainer, state, _ = stopped
    check_state(state, trainer.engine, trainer.course)


def put(values, path, value):
    *parents, last = path
    for key in parents:
        values = values[key]
    values[last] = value


WRONG = [
    (("progress", "epoch"), -5, r"progress.epoch: got -5, expected a whole number from 1 to 4"),
    (("progress", "epoch"), 3, "progress.step: got 7, expected 12"),
    (("progress", "epoch"), True, "progress.epoch: got True"),
    (("progress", "done"), 10**30, "progress.done"),
    (("progress", "done"), 3, "progress.done: got 3, expected whole steps of 2"),
    (("progress", "step"), 8, "progress.step: got 8, expected a whole number from 0 to 7"),
    (("progress", "skipped"), -1, "progress.skipped"),
    (("progress", "loss"), [math.nan, 1.0], "progress.loss"),
    (("progress", "loss"), [1.0, 0.0], "progress.loss: got 0.0 rows after 4"),
    (("progress", "loss"), "0", "progress.loss"),
    (("progress", "best"), None, "progress.best: got None in epoch 2"),
    (("progress", "best", "epoch"), 2, "progress.best.epoch"),
    (("progress", "best", "validation"), {}, "progress.best.validation: got {}, expected accuracy"),
    (("progress", "best", "validation", "accuracy"), math.inf, "progress.best.validation.accuracy"),
    (("progress", "seconds"), -1.0, "progress.seconds"),
    (("progress", "seconds"), 10**400, "progress.seconds"),
    (("progress", "more"), 1, "progress: got 'more'"),
    (("progress",), [], "progress: got list"),
    (("log",), {"metrics.jsonl": 0, "/abs/victim": 3}, "log: got no 'train.log'"),
    (("log", "../../victim"), 3, "log: got '../../victim'"),
    (("log", "train.log"), -1, "log.train.log"),
    (("log", "train.log"), "3", "log.train.log"),
    (("run",), "another", "run: got a checkpoint of another run"),
    (("groups",), [], "groups"),
    (("groups", 0, "lr"), -1.0, "groups.0.lr"),
    (("groups", 0, "lr"), 0.5, "groups: got learning rates"),
    (("groups", 0, "params"), [0], "groups.0.params"),
    (("groups", 0, "weight_decay"), 1e9, "groups.0.weight_decay"),
    (("groups", 0, "betas"), [2.0, 0.9], "groups.0.betas"),
    (("groups", 0, "hook"), "x", "groups.0"),
    (("schedule", "last_epoch"), 0, "schedule.last_epoch: got 0, expected 7"),
    (("schedule", "base_lrs"), [1.0], "schedule.base_lrs"),
    (("schedule", "lr_lambdas"), [{"func": 1}], "schedule.lr_lambdas"),
    (("scaler",), {"scale": 1.0}, "scaler"),
    (("random",), [], "random"),
    (("random", 0, "python"), [3, [1, 2], None], "random.0"),
    (("random", 0, "python", 1, 0), 2**80, "random.0"),
    (("random", 0, "numpy"), ["MT", 1, 0, 0.0], "random.0"),
    (("optimized",), [], "optimized"),
    (("optimized",), [0, 10**6], "optimized"),
    (("skips_in_a_row",), 1000, "skips_in_a_row"),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG, ids=[".".join(map(str, p)) for p, _, _ in WRONG])
def test_every_value_is_checked(stopped, path, value, message):
    trainer, state, _ = stopped
    values = copy.deepcopy(state.values)
    put(values, path, value)
    before = fakes.trained_tensors(trainer)
    with pytest.raises(ValueError, match=message):
        check_state(State(state.tensors, values), trainer.engine, trainer.course)
    assert all(torch.equal(tensor, before[name]) for name, tensor in fakes.trained_tensors(trainer).items())


def test_every_value_is_needed(stopped):
    trainer, state, _ = stopped
    for key in state.values:
        values = {name: value for name, value in state.values.items() if name != key}
        with pytest.raises(ValueError, match=f"state: got no '{key}'"):
            check_state(State(state.tensors, values), trainer.engine, trainer.course)


def test_every_tensor_is_checked(stopped):
    """A missing one, one that would broadcast, another dtype, NaN, a negative square."""
    trainer, state, _ = stopped
    head = state.tensors["model.head.weight"]
    wrong = {"model.head.weight": [head[:, :1].contiguous(), head.double(), head * math.nan], "best.head.bias": [head]}
    wrong |= {"optimizer.0.exp_avg_sq": [state.tensors["optimizer.0.exp_avg_sq"] - 1]}
    wrong |= {"optimizer.0.step": [torch.tensor(99.0)], "random.0.torch": [torch.zeros(3, dtype=torch.uint8)]}
    wrong |= {"random.0.numpy": [torch.full((624,), -1)]}
    for name, tensors in wrong.items():
        for tensor in tensors:
            with pytest.raises(ValueError, match=rf"{name}|{name.rpartition('.')[0]}"):
                check_state(State({**state.tensors, name: tensor}, state.values), trainer.engine, trainer.course)
    for name in state.tensors:
        tensors = {other: tensor for other, tensor in state.tensors.items() if other != name}
        with pytest.raises(ValueError, match=r"tensors: got no|random.0: got tensors"):
            check_state(State(tensors, state.values), trainer.engine, trainer.course)
    with pytest.raises(ValueError, match="tensors: got 'model.more'"):
        check_state(State({**state.tensors, "model.more": head}, state.values), trainer.engine, trainer.course)


def test_a_drive_that_fails_damages_no_checkpoint(stopped, tmp_path, monkeypatch):
    """EIO, ESTALE and EACCES say nothing of the content: nothing is passed over or renamed."""
    _, _, folder = stopped
    before = sorted(path.name for path in (folder / "checkpoints").iterdir())

    def fail(path, *_):
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(checkpoints, "read_bytes", fail)
    with pytest.raises(OSError, match="Input/output error"):
        fakes.trainer(folder, **RECIPE).fit(resume=True)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == before


def test_huge_files_are_refused_before_they_are_read(stopped, tmp_path):
    """Sparse ones take no disk: the head of a run and a checkpoint are bounded by what is expected in them."""
    _, _, folder = stopped
    shutil.copytree(folder, tmp_path / "run")
    for path in (
        tmp_path / "run" / "best" / "head.safetensors",
        checkpoint_files(tmp_path / "run" / "checkpoints")[-1],
    ):
        os.truncate(path, 40 << 30)
    with pytest.raises(ValueError, match=r"head.safetensors of 42,949,672,960 bytes, expected at most"):
        load_run(tmp_path / "run", backbone=fakes.backbone())
    trainer = fakes.trainer(tmp_path / "run", **RECIPE)
    trainer.fit(resume=True)
    assert any("passed over" in line and "of 42,949,672,960 bytes" in line for line in trainer.log.console.lines)


def test_a_checkpoint_without_a_digest_is_of_an_earlier_version(stopped, tmp_path):
    _, state, folder = stopped
    shutil.copytree(folder, tmp_path / "run")
    values = {name: value for name, value in state.values.items() if name not in ("run", "optimized")}
    for path in checkpoint_files(tmp_path / "run" / "checkpoints"):
        path.unlink()
    path.write_bytes(pack_tensors(state.tensors, {"state": json.dumps(values)}))
    trainer = fakes.trainer(tmp_path / "run", **RECIPE)
    trainer.fit(resume=True)
    said = trainer.log.console.lines
    assert any("saved by an earlier version without a digest" in line for line in said), said
    assert any(f"resumed at epoch 2, step {STEP}" in line for line in said)


def test_a_flipped_bit_is_noticed(stopped, tmp_path):
    _, _, folder = stopped
    data, draw, path = checkpoint_files(folder / "checkpoints")[-1].read_bytes(), random.Random(5), tmp_path / "x"
    places = [0, 7, 8, len(data) - 1, *(draw.randrange(len(data)) for _ in range(150))]
    places += [draw.randrange(2000) for _ in range(50)]
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"x: "):
            unpack(path)
    for length in (0, 7, 100, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"x: "):
            unpack(path)


def test_a_wrong_checkpoint_is_passed_over_aloud_and_ends_in_the_same_bits(tmp_path):
    """Crafted with a right digest; the log's victim outside the run is as it was."""
    fakes.trainer(tmp_path / "whole", **RECIPE).fit()
    stop_at(fakes.trainer(tmp_path / "run", **RECIPE), STEP)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "run" / "checkpoints"
    state = unpack(checkpoint_files(folder)[-1])
    state.values["log"] |= {str(victim): 3, "../../victim": 3}
    write_checkpoint(folder, state)
    trainer = fakes.trainer(tmp_path / "run", **RECIPE)
    trainer.fit(resume=True)
    said = [line for line in trainer.log.console.lines if "passed over" in line]
    assert (
        len(said) == 1 and "000000007-0002.safetensors is passed over and renamed: log: got '../../victim'" in said[0]
    )
    assert victim.read_text() == "precious" and len(list(folder.glob("*.damaged"))) == 1
    same(tmp_path / "whole", tmp_path / "run")
    assert events(tmp_path / "whole") == events(tmp_path / "run")


@pytest.mark.parametrize("name", ["train.log", "metrics.jsonl", "checkpoints"])
def test_no_entry_of_the_folder_leads_out_of_it(tmp_path, name):
    """Logs are appended to and cut, old checkpoints deleted: a shared run must not say where."""
    stop_at(fakes.trainer(tmp_path / "run", **RECIPE), STEP)
    entry, victim = tmp_path / "run" / name, tmp_path / "victim"
    entry.rename(victim)
    entry.symlink_to(victim)
    before = sorted(path.name for path in victim.iterdir()) if victim.is_dir() else victim.read_bytes()
    with pytest.raises(ValueError, match=f"{name}: got a link, expected a f"):
        fakes.trainer(tmp_path / "run", **RECIPE).fit(resume=True)
    assert (sorted(path.name for path in victim.iterdir()) if victim.is_dir() else victim.read_bytes()) == before
