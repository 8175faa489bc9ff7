"""Killed anywhere, a sweep goes on and finds the same; cells that fail are told and stop nothing."""

import os
import signal

import pytest
import torch

from mora.sweeping.cell import ENDED
from tests.sweeping import small
from tests.training import fakes

PLAN = dict(lr=[1e-3, 1e-2], seeds=[0, 1])


def rows(out):
    found = small.state(out)
    return found["rows"], found["settings"], found["winner"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "whole"
    small.run(out, **PLAN)
    return out


def test_a_killed_sweep_goes_on_and_ends_in_the_same_bits(tmp_path, monkeypatch, whole):
    """Four steps a cell, two an epoch: killed in the second epoch of the second cell."""

    def kill(number, _):
        if number == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        small.steps(patched, kill)
        with pytest.raises(KeyboardInterrupt):
            small.run(tmp_path, **PLAN)
    assert len(small.state(tmp_path)["rows"]) == 1
    count = []
    small.steps(monkeypatch, lambda number, _: count.append(number))
    small.run(tmp_path, **PLAN)
    assert rows(tmp_path) == rows(whole)
    assert len(count) == 2 + 8, "whole cells and whole epochs are not done again"


def test_failed_cells_are_told_and_the_rest_goes_on(tmp_path, monkeypatch):
    def no_memory(number, config):
        if config.lr == 1e-2:
            raise torch.OutOfMemoryError("tried to allocate 20.00 GiB")

    small.steps(monkeypatch, no_memory)
    console = small.console()
    plan = dict(last_layers=[1, 9], lr=[1e-3, 1e-2, 1e30], seeds=[1])
    outcome = small.run(tmp_path, told=console, **plan)
    assert [s.state for s in outcome.settings] == ["done", *["failed"] * 5]
    assert outcome.winner.number == 1 and outcome.winner.values == {"last_layers": 1, "lr": 1e-3}
    errors = [row.error for row in outcome.rows]
    assert errors[0] is None and errors[1] == "OutOfMemoryError: tried to allocate 20.00 GiB"
    assert "is not finite" in errors[2] and errors[3].startswith("last_layers: got 9, expected at most")
    shown = " ".join(console.file.getvalue().split())
    assert "Failed: settings 2, 3, 4, 5, 6. Setting 2: OutOfMemoryError: tried" in shown
    monkeypatch.undo()
    assert small.run(tmp_path, **plan).rows == outcome.rows, "what failed stays so"
    (tmp_path / "runs" / "002-seed1" / ENDED).unlink()
    assert small.run(tmp_path, **plan).settings[1].state == "done", "without its file it is tried again"


def test_no_setting_left_is_an_error_with_the_first_reason(tmp_path):
    with pytest.raises(ValueError, match=r"every setting failed, .*setting 1 \(last_layers 8\), seed 0: .*last_layers"):
        small.run(tmp_path / "s", last_layers=[8, 9], seeds=[0])


def test_what_is_wrong_with_every_cell_stops_the_sweep(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "x")

    small.steps(monkeypatch, full)
    with pytest.raises(OSError, match="No space left"):
        small.run(tmp_path / "s", **PLAN)
    assert small.state(tmp_path / "s")["rows"] == []


class Deadly(fakes.Rows):
    """Rows that kill the first process which reads them, once."""

    def __getitem__(self, index):
        try:
            os.close(os.open(self.flag, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return super().__getitem__(index)
        os.kill(os.getpid(), signal.SIGKILL)


def test_processes_find_the_same_and_one_that_is_killed_takes_nothing_along(tmp_path, whole):
    splits = fakes.splits()
    splits["validation"].__class__, splits["validation"].flag = Deadly, str(tmp_path / "flag")
    outcome = small.run(tmp_path / "there", splits, jobs=2, **PLAN)
    killed = [row for row in outcome.rows if row.state == "failed"]
    assert len(killed) == 1 and killed[0].error == "its process was killed by SIGKILL: memory may have run out"
    (tmp_path / "there" / "runs" / f"{killed[0].setting:03}-seed{killed[0].seed}" / ENDED).unlink()
    small.run(tmp_path / "there", splits, jobs=2, **PLAN)
    assert rows(tmp_path / "there")[:2] == rows(whole)[:2]
