"""Signals, kills, a full disk, a folder that becomes read-only: nothing is half there, all goes on in the same bits.

`MORA_KILLS=30` kills evaluate and merge at 30 random moments each, instead of 3.
"""

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import threading
import time

import pytest

from mora.cli import main
from mora.evaluation.report import FILES
from mora.evaluation.run import Source, evaluate_runs
from mora.export import merge_run
from mora.training.checkpoints import read_checkpoint
from tests.data import synthetic
from tests.evaluation.fakes import write_run
from tests.training import fakes
from tests.training.test_resume import RECIPE, events, lines, processes, same, work  # noqa: F401 # a fixture

KILLS = int(os.environ.get("MORA_KILLS", "3"))
LONG = {**RECIPE, "checkpoint_minutes": 60.0}


def work_long(folder, fields):
    work(folder, {**LONG, **fields})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    fakes.trainer(folder, **LONG).fit()
    return folder


@pytest.mark.parametrize(("number", "after"), [(signal.SIGTERM, 3), (signal.SIGINT, 8)])
def test_a_signal_loses_no_step(processes, tmp_path, whole, number, after):  # noqa: F811
    """No checkpoint was due: it is written because of the signal, and the process ends by it."""
    folder = tmp_path / "run"
    process = processes.Process(target=work_long, args=(folder, {}))
    process.start()
    while lines(folder) < after:
        time.sleep(0.001)
        assert process.is_alive()
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == (-number if number == signal.SIGTERM else 1)
    state, _ = read_checkpoint(folder / "checkpoints", lambda state: None)
    steps = [line["step"] for line in events(folder) if line["event"] == "step"]
    assert state.progress.step == steps[-1] >= after - 2
    said = (folder / "train.log").read_text().splitlines()[-1]
    assert f"stopped by {signal.Signals(number).name} after step {steps[-1]} of 20" in said
    assert "its checkpoint is written: the same command with --resume goes on" in said
    fakes.trainer(folder, **LONG).fit(resume=True)
    same(whole, folder)
    assert events(whole) == events(folder)
    assert not list(folder.rglob(".*"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_s_exit_code_and_its_one_line(tmp_path, capsys, number, code):
    data, run = synthetic.manifest(tmp_path), tmp_path / "run"

    def send():
        while lines(run) < 4:
            time.sleep(0.005)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    given = ["--data", str(data), "--out", str(run), "--device", "cpu", "--batch", "8", "--log-every", "1"]
    assert main(["train", *given, "--epochs", "100000"]) == code
    said = capsys.readouterr().err.splitlines()
    assert sum("stopped by" in line for line in said) == 1 and f"stopped by {signal.Signals(number).name}" in said[-1]
    assert "--resume goes on" in said[-1] and list((run / "checkpoints").glob("*.safetensors"))
    assert not (run / ".lock").exists()


def test_other_commands_clear_away_what_is_half_done(tmp_path, capsys, monkeypatch):
    from mora.export import formats

    write_run(tmp_path / "run")
    monkeypatch.setitem(formats.WRITERS, "open_clip", lambda *_: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(9))
    assert main(["merge", "--model", str(tmp_path / "run"), "--out", str(tmp_path / "merged")]) == 143
    assert capsys.readouterr().err == "mora merge: SIGTERM\n"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def evaluate(run, data, out):
    evaluate_runs([run], out, [], seeds=[0], source=Source(str(data), "test", extra_columns=True), device="cpu")


def merge(run, data, out):
    merge_run(run, out)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(a run on a manifest, the manifest)."""
    place = tmp_path_factory.mktemp("trained")
    data = synthetic.manifest(place)
    given = ["--data", str(data), "--out", str(place / "run"), "--epochs", "1", "--device", "cpu", "--batch", "8"]
    assert main(["train", *given]) == 0
    return place / "run", data


def call(command, run, data, out):
    import torch

    torch.set_num_threads(1)
    {"evaluate": evaluate, "merge": merge}[command](run, data, out)


@pytest.mark.parametrize("command", ["evaluate", "merge"])
def test_killed_at_random_moments(processes, tmp_path, trained, command):  # noqa: F811
    """Absent, or whole; run again, the same bytes as if nobody had disturbed it, and nothing hidden is left."""
    run, data = trained
    for place in ("warm", "a"):  # the first process reads libraries from disk
        began = time.perf_counter()
        start(processes, command, run, data, tmp_path / place / "out").join()
    took, expected = time.perf_counter() - began, contents(tmp_path / "a" / "out")
    assert expected
    draw, killed, out = random.Random(11), 0, tmp_path / "b" / "out"
    for _ in range(KILLS):
        process = start(processes, command, run, data, out)
        time.sleep(draw.uniform(0.1, 1.0) * took)
        killed += process.is_alive()
        process.kill()
        process.join()
        if command == "merge" or (out / "results.json").is_file():
            assert not out.exists() or contents(out) == expected
    start(processes, command, run, data, out).join()
    assert contents(out) == expected
    assert [path.name for path in out.parent.iterdir()] == ["out"] and not list(out.glob(".*"))
    print(f"{command}: {killed} of {KILLS} killed while at work, {took:.1f} s undisturbed")


def start(processes, command, run, data, out):  # noqa: F811
    process = processes.Process(target=call, args=(command, run, data, out))
    process.start()
    return process


@contextlib.contextmanager
def file_limit(size):
    """No file may grow beyond `size` bytes: writes fail as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_while_training(tmp_path, whole):
    """The error names the file, the checkpoint from before is whole, and the run goes on when there is room again."""
    folder = tmp_path / "run"
    trainer = fakes.trainer(folder, **RECIPE)
    take, limit = trainer.engine.step, contextlib.ExitStack()

    def filling(*given):
        if trainer.progress.step == 7:
            limit.enter_context(file_limit(4000))
        return take(*given)

    trainer.engine.step = filling
    with limit, pytest.raises(OSError, match=r"too large: '.*/checkpoints/000000008-0002.safetensors'"):
        trainer.fit()
    assert not list(folder.rglob(".*"))
    fakes.trainer(folder, **RECIPE).fit(resume=True)
    same(whole, folder)
    assert events(whole) == events(folder)


def test_a_full_disk_while_evaluating_leaves_the_four_files_of_before(tmp_path, trained):
    run, data = trained
    evaluate(run, data, tmp_path / "out")
    before = contents(tmp_path / "out")
    assert set(before) == set(FILES)
    (tmp_path / "out" / "results.csv").write_bytes(b"of before")
    with file_limit(len(before["results.json"]) - 1), pytest.raises(OSError, match=r"too large: '.*/out/"):
        evaluate(run, data, tmp_path / "out")
    assert contents(tmp_path / "out") == {**before, "results.csv": b"of before"}
    with file_limit(100_000), pytest.raises(OSError, match=r"File too large|I/O error"):
        merge(run, data, tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of one megabyte."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount here")
    if made.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here ({made.stderr.strip()})")
    yield place
    subprocess.run(["umount", str(place)], check=False)


def test_a_disk_that_is_full(small_disk, whole):
    """The real thing, where the machine lets a test mount one."""
    folder, ballast = small_disk / "run", small_disk / "ballast"
    trainer = fakes.trainer(folder, **RECIPE)
    take = trainer.engine.step

    def filling(*given):
        if trainer.progress.step == 7:
            with contextlib.suppress(OSError), ballast.open("wb") as file:
                file.write(bytes(1 << 20))
        return take(*given)

    trainer.engine.step = filling
    with pytest.raises(OSError, match=r"No space left on device: '.*/run/"):
        trainer.fit()
    ballast.unlink()
    assert not list(folder.rglob(".[!l]*"))
    fakes.trainer(folder, **RECIPE).fit(resume=True)
    same(whole, folder)
    assert events(whole) == events(folder)


def test_a_folder_that_becomes_read_only(tmp_path, whole):
    """Immutable: root obeys that, too."""
    folder = tmp_path / "run"
    trainer = fakes.trainer(folder, **RECIPE)
    take, change = trainer.engine.step, lambda sign: subprocess.run(
        ["chattr", "-R", f"{sign}i", str(folder)], capture_output=True, text=True, check=False
    )  # fmt: skip
    refused = []

    def freezing(*given):
        if trainer.progress.step == 7 and (done := change("+")).returncode:
            refused.append(done.stderr.strip())
            raise KeyboardInterrupt
        return take(*given)

    trainer.engine.step = freezing
    try:
        with pytest.raises((OSError, KeyboardInterrupt), match=r"^$|not permitted: '.*/run/") as found:
            trainer.fit()
    except FileNotFoundError:
        pytest.skip("no chattr here")
    finally:
        change("-")
    if refused:
        pytest.skip(f"files cannot be made immutable here ({refused[0]})")
    assert isinstance(found.value, OSError)
    fakes.trainer(folder, **RECIPE).fit(resume=True)
    same(whole, folder)
    assert events(whole) == events(folder)
    assert not list(folder.rglob(".*"))


def test_the_same_run_resumed_twice_at_once(processes, tmp_path, whole):  # noqa: F811
    folder = tmp_path / "run"
    first = processes.Process(target=work, args=(folder, {**RECIPE, "epochs": 4}))
    first.start()
    while lines(folder) < 3:
        time.sleep(0.001)
    with pytest.raises(ValueError, match=rf"out: got .*run, which process {first.pid} on .* since .* is writing"):
        fakes.trainer(folder, **RECIPE).fit(resume=True)
    first.join()
    assert first.exitcode == 0
    same(whole, folder)
    assert json.loads((folder / "result.json").read_text())["epochs"] == 4
