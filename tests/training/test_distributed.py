"""Two processes on gloo are one process with twice the batch; so is accumulation."""

import json
import os
import signal
import time

import pytest
import torch

from mora.system.files import read_tensors
from tests.processes import Running, free_port
from tests.training import fakes

RECIPE = dict(dropout=0.0, epochs=3, lr=1e-3, accumulation=2, checkpoint_minutes=1e-4)


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return torch.tensor([line["loss"] for line in lines if line["event"] == "step"], dtype=torch.float64)


def epochs(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] in ("epoch", "test")]


def close(one, other):
    """Losses within 1e-5, the same figures, and weights that differ by rounding."""
    assert len(losses(one)) == len(losses(other)) > 0
    assert (losses(one) - losses(other)).abs().max() <= 1e-5
    for first, second in zip(epochs(one), epochs(other), strict=True):
        assert first.get("validation") == second.get("validation") and first.get("test") == second.get("test")
    for name in ("adapter_model.safetensors", "head.safetensors"):
        first, second = (read_tensors(folder / "best" / name)[0] for folder in (one, other))
        for key, tensor in first.items():
            torch.testing.assert_close(tensor, second[key], rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("rows", [40, 37, 33], ids=["whole", "odd", "one-left"])
def test_accumulation_equals_a_larger_batch(tmp_path, rows):
    fields = dict(dropout=0.0, epochs=2, lr=1e-3)
    fakes.trainer(tmp_path / "one", fakes.splits(rows), batch=16, **fields).fit()
    fakes.trainer(tmp_path / "two", fakes.splits(rows), batch=4, accumulation=4, **fields).fit()
    close(tmp_path / "one", tmp_path / "two")


def train(rank, port, out, rows, stop, resume):
    """What torchrun would tell a process, and the training; process 1 is killed before the step `stop`."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    trainer = fakes.trainer(out, fakes.splits(rows, natural=True), batch=4, **RECIPE)
    take = trainer.engine.step

    def stopping(*given):
        if trainer.progress.step == stop and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return take(*given)

    if stop:
        trainer.engine.step = stopping
    trainer.fit(resume=resume)


def two(out, rows, stop=0, resume=False, **environment):
    """Train in two processes, the second of which is killed before the step `stop`; what the first said at its end."""
    port = free_port()
    running = [Running(train, rank, port, out, rows, stop, resume, environment=environment) for rank in range(2)]
    first, second = (each.end() for each in running)
    assert second.code == (-signal.SIGKILL if stop else 0), second.err[-3000:]
    assert (first.code == 0) == (not stop), first.err[-3000:]
    return first.err


def test_two_processes_equal_one_with_twice_the_batch_and_resume(tmp_path):
    """33 rows: the last forward pass leaves the second process without any; it is killed mid-epoch, all are resumed.

    `auto` keeps rows on disk when several processes train: each computes a part, all read everything.
    """
    data = fakes.splits(33, natural=True)
    fakes.trainer(tmp_path / "one", data, batch=16, dropout=0.0, epochs=3, lr=1e-3).fit()
    home = {"XDG_CACHE_HOME": str(tmp_path / "home")}
    began = time.perf_counter()
    said = two(tmp_path / "two", 33, stop=4, **home)
    assert time.perf_counter() - began < 60 + 60  # the start of both processes included
    assert "process 0 of 2 lost another one" in said, said[-3000:]
    two(tmp_path / "two", 33, resume=True, **home)
    close(tmp_path / "one", tmp_path / "two")
    assert "prefixes" in (tmp_path / "two" / "train.log").read_text()
    assert len(list((tmp_path / "home" / "mora" / "prefixes").iterdir())) == 2
    assert json.loads((tmp_path / "two" / "config.json").read_text())["train"]["cache"] == "auto"
    with pytest.raises(ValueError, match="processes: .*started with 2, this call has 1"):
        fakes.trainer(tmp_path / "two", data, batch=4, **{**RECIPE, "checkpoint_minutes": 1.0}).fit(resume=True)
