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


@pytest.mark.parametrize("at", [1, 6, 9])
def test_a_killed_sweep_goes_on_and_ends_in_the_same_bits(tmp_path, monkeypatch, at):
    small.run(tmp_path / "whole", **PLAN)

    def kill(number, _):
        if number == at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        small.steps(patched, kill)
        with pytest.raises(KeyboardInterrupt):
            small.run(tmp_path / "killed", **PLAN)
    done = len(small.state(tmp_path / "killed")["rows"])
    assert done == (at - 1) // 4
    count = []
    small.steps(monkeypatch, lambda number, _: count.append(number))
    small.run(tmp_path / "killed", **PLAN)
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert len(count) == 16 - 4 * done - 2 * ((at - 1) % 4 >= 2), "whole cells and whole epochs are not done again"


def test_failed_cells_are_told_and_the_rest_goes_on(tmp_path, monkeypatch):
    def no_memory(number, config):
        if config.lr == 1e-2 and config.seed == 1:
            raise torch.OutOfMemoryError("tried to allocate 20.00 GiB")

    small.steps(monkeypatch, no_memory)
    console = small.console()
    plan = dict(lr=[1e-3, 1e-2, 1e30], last_layers=[1, 9], seeds=[0, 1])
    outcome = small.run(tmp_path / "s", told=console, **plan)
    assert [s.state for s in outcome.settings] == ["done", "failed", "failed", "failed", "failed", "failed"]
    assert outcome.winner.number == 1 and outcome.winner.values == {"lr": 1e-3, "last_layers": 1}
    errors = {(row.setting, row.seed): row.error for row in outcome.rows}
    assert errors[3, 0] is None and errors[3, 1] == "OutOfMemoryError: tried to allocate 20.00 GiB"
    assert "last_layers" in errors[2, 0] and "9" in errors[2, 0]
    assert "is not finite" in errors[5, 0]
    shown = " ".join(console.file.getvalue().split())
    assert "Failed: settings 2, 3, 4, 5, 6. Setting 2: " in shown
    monkeypatch.undo()
    again = small.run(tmp_path / "s", **plan)
    assert again.rows == outcome.rows, "what failed stays so"
    (tmp_path / "s" / "runs" / "003-seed1" / ENDED).unlink()
    again = small.run(tmp_path / "s", **plan)
    assert again.settings[2].state == "done", "without its file it is tried again"


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


def test_processes_find_the_same_and_one_that_is_killed_takes_nothing_along(tmp_path):
    small.run(tmp_path / "here", **PLAN)
    splits = fakes.splits()
    splits["validation"].__class__, splits["validation"].flag = Deadly, str(tmp_path / "flag")
    outcome = small.run(tmp_path / "there", splits, jobs=2, **PLAN)
    killed = [row for row in outcome.rows if row.state == "failed"]
    assert len(killed) == 1 and killed[0].error == "its process was killed by SIGKILL: memory may have run out"
    (tmp_path / "there" / "runs" / f"{killed[0].setting:03}-seed{killed[0].seed}" / ENDED).unlink()
    small.run(tmp_path / "there", splits, jobs=2, **PLAN)
    assert rows(tmp_path / "there")[:2] == rows(tmp_path / "here")[:2]
