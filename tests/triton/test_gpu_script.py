"""`benchmarks/gpu.sh`: what it checks, in the interpreter; its parts lose only themselves; it says how each ended."""

import ctypes
import json
import os
import re
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_parts, rows
from benchmarks.environment import ROOT
from benchmarks.gpu_parity import groups
from benchmarks.gpu_parts import Part
from benchmarks.sizes import Scale
from mora_kernels import backend

CPU = Scale("cpu", True)


def script(*arguments):
    return subprocess.run([ROOT / "benchmarks" / "gpu.sh", *arguments], capture_output=True, text=True, check=False)


def test_a_group_of_eight_is_built_by_one_launch_each_way():
    assert [*groups("cpu", [torch.float32], (24, 16))] == ["group of eight float32"]


@pytest.mark.timeout(600)
def test_smoke_runs_every_part(tmp_path):
    done = script("--smoke", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    found = {each["part"]: each for each in json.loads((tmp_path / gpu.SUMMARY).read_text())}
    assert [*found] == [part.name for part in gpu_parts.PARTS if part.quick]
    needs_gpu = {"offsets", "step-graph"}
    for name, each in found.items():
        assert each["outcome"] == ("skipped" if name in needs_gpu else "ok"), each
    for name in needs_gpu:
        assert found[name]["detail"] == "needs a GPU"
    assert "a second stream: needs a GPU" in found["edges"]["detail"]
    assert len(list(tmp_path.iterdir())) <= 8
    levels = {row["level"] for row in rows.read(tmp_path)}
    assert levels == {"projection", "operations", "training_step", "savings", "inference"}
    log = (tmp_path / gpu.LOG).read_text()
    assert "ok  activation checkpointing" in log
    assert "triton" in log


def test_the_plan_fits_into_six_minutes():
    lines = gpu.plan([part for part in gpu_parts.PARTS if part.quick]).splitlines()
    seconds = [int(re.search(r"(\d+) s", line)[1]) for line in lines]
    assert seconds[-1] == sum(seconds[:-1]) <= 360
    checks = [part.check for part in gpu_parts.PARTS if part.quick]
    assert checks == sorted(checks, reverse=True)  # what is right before how fast it is


def test_without_a_gpu_nothing_else_starts(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = script("--parts", "installed", "parity", "build", "--out", str(tmp_path))
    assert done.returncode == 1
    found = json.loads((tmp_path / gpu.SUMMARY).read_text())
    assert [each["outcome"] for each in found] == ["failed", "skipped", "skipped"]
    assert "gpu.sh --smoke" in found[0]["detail"]
    assert found[2]["detail"] == "no CUDA device"


def fine(scale, out):
    yield "right", lambda: "as expected"


def wrong(scale, out):
    def check():
        raise AssertionError("y (torch.float16): relative L2 1 > 0.1\nmore")

    yield "y", check
    yield "dx", lambda: ""


def broken(scale, out):
    def call():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    yield "batch 8", call


def hanging(scale, out):
    yield "before", lambda: ""
    yield "asleep", lambda: time.sleep(60)


def crashing(scale, out):
    yield "at once", lambda: ctypes.string_at(0)


def lingering(scale, out):
    """Its own child holds the pipe open."""
    yield "a child", lambda: str(subprocess.Popen(["sleep", "60"]).pid)


@pytest.mark.parametrize(
    ("items", "outcome", "detail", "check", "code"),
    [
        (fine, "ok", "1 done", True, 0),
        (wrong, "failed", "y: AssertionError: y (torch.float16): relative L2 1 > 0.1 (1 failed, 1 done)", True, 1),
        (wrong, "failed", "y: AssertionError: y (torch.float16): relative L2 1 > 0.1 (1 failed, 1 done)", False, 1),
        (broken, "failed", "batch 8: RuntimeError: CUDA error: an illegal memory access", True, 1),
        (broken, "failed", "batch 8: RuntimeError: CUDA error: an illegal memory access", False, 3),
        (hanging, "timed out", "1 done", True, 1),
        (hanging, "timed out", "1 done", False, 3),
        (crashing, "failed", "SIGSEGV", False, 3),
    ],
)
def test_a_part_loses_only_itself(tmp_path, items, outcome, detail, check, code):
    parts = [Part("planted", 2, items, check=check), Part("after", 10, fine)]
    began = time.perf_counter()
    planted, after = gpu.run_parts(parts, CPU, tmp_path, {})
    assert time.perf_counter() - began < 20
    assert planted.outcome == outcome
    assert planted.detail.startswith(detail)
    assert gpu.exit_code([planted, after]) == code
    assert after.outcome == "ok"
    log = (tmp_path / gpu.LOG).read_text()
    if items is hanging:
        assert "test_gpu_script.py" in log  # where it stood
    assert [line for line in log.splitlines() if " planted " in line][-1].split("] ")[1].startswith(outcome)


def test_no_part_goes_on_beyond_the_end(tmp_path):
    parts = [Part("planted", 30, hanging), Part("after", 10, fine)]
    began = time.perf_counter()
    found = gpu.run_parts(parts, CPU, tmp_path, {}, began + 2.5)
    assert time.perf_counter() - began < 10
    assert [(each.outcome, each.detail) for each in found] == [
        ("timed out", "1 done"),
        ("timed out", "no time was left"),
    ]
    assert gpu.exit_code(found) == 1


def test_what_a_part_started_ends_with_it(tmp_path):
    (found,) = gpu.run_parts([Part("planted", 10, lingering)], CPU, tmp_path, {})
    assert found.outcome == "ok"
    assert found.seconds < 5
    pid = int(re.search(r"a child \(.*\) (\d+)", (tmp_path / gpu.LOG).read_text())[1])
    for _ in range(50):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        with suppress(FileNotFoundError):
            if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():  # ended, and nobody has asked for its code
                return
        time.sleep(0.1)
    pytest.fail("the child lives on")


@pytest.mark.parametrize(
    ("triton", "numpy", "named"), [("3.6.0", "2.4.1", True), ("3.6.0", "2.3.5", False), ("3.8.0", "2.5.0", False)]
)
def test_a_pair_that_cannot_interpret_is_named(monkeypatch, triton, numpy, named):
    backend.interpreter_problem.cache_clear()
    monkeypatch.setattr(backend, "version", {"triton": triton, "numpy": numpy}.__getitem__)
    try:
        problem = backend.missing("cpu", -1, "float32")
        assert bool(problem) == named
        if named:
            assert (
                problem == "Triton 3.6.0's interpreter cannot run with NumPy 2.4.1 (expected numpy<2.4, or triton>=3.7)"
            )
    finally:
        backend.interpreter_problem.cache_clear()
