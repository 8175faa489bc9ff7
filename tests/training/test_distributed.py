"""Two processes on gloo are one process with twice the batch; so is accumulation."""

import json
import socket
import subprocess
import sys
import time

import pytest
import torch

from mora.system.files import read_tensors
from tests.training import fakes


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


SCRIPT = """
import os, sys, torch
torch.set_num_threads(1)
from tests.training import fakes
out, rows, stop, resume = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "resume"
trainer = fakes.trainer(out, fakes.splits(rows, natural=True), batch=4, dropout=0.0, epochs=3, lr=1e-3, accumulation=2,
                        checkpoint_minutes=1e-4)
if stop:
    take = trainer.engine.step
    def stopping(*given):
        if trainer.progress.step == stop:
            if trainer.accelerator.process_index == 1:
                os.kill(os.getpid(), 9)
        return take(*given)
    trainer.engine.step = stopping
trainer.fit(resume=resume)
"""


def two(out, rows, stop=0, resume=False):
    """Train in two processes that torchrun starts; the second is killed before the step `stop`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = out.parent / "script.py"
    script.write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    command = [*launch, str(script), str(out), str(rows), str(stop), "resume" if resume else "new"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert (done.returncode == 0) == (not stop), done.stderr[-3000:]
    return done.stderr


def test_two_processes_equal_one_with_twice_the_batch_and_resume(tmp_path, monkeypatch):
    """33 rows: the last forward pass leaves the second process without any; it is killed mid-epoch, all are resumed.

    `auto` keeps rows on disk when several processes train: each computes a part, all read everything.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    data = fakes.splits(33, natural=True)
    fakes.trainer(tmp_path / "one", data, batch=16, dropout=0.0, epochs=3, lr=1e-3).fit()
    began = time.perf_counter()
    said = two(tmp_path / "two", 33, stop=4)
    assert time.perf_counter() - began < 60 + 60  # the start of torchrun and of both processes included
    assert "lost another one" in said or "SIGTERM" in said, said[-3000:]
    two(tmp_path / "two", 33, resume=True)
    close(tmp_path / "one", tmp_path / "two")
    assert "prefixes" in (tmp_path / "two" / "train.log").read_text()
    assert len(list((tmp_path / "home" / "mora" / "prefixes").iterdir())) == 2
    assert json.loads((tmp_path / "two" / "config.json").read_text())["train"]["cache"] == "auto"
    with pytest.raises(ValueError, match="processes: .*started with 2, this call has 1"):
        fakes.trainer(
            tmp_path / "two", data, batch=4, dropout=0.0, epochs=3, lr=1e-3, accumulation=2, checkpoint_minutes=1.0
        ).fit(resume=True)
