"""Which settings are tried: grids, draws, and Optuna's suggestions, which are the same for the same answers."""

import math
import random
import shutil
import sys

import pytest

from mora.sweeping import cell, search
from mora.sweeping.search import Told, drawn, falls_behind, grid, search_of
from mora.sweeping.space import Range
from tests.sweeping import small

optuna = pytest.importorskip("optuna")


def test_a_grid_is_every_combination_the_last_field_varying_fastest(tmp_path):
    plan = small.plan(tmp_path, lr=[1e-3, 1e-2], rank=[4, {"image": 8, "text": 4}], common_rank=4)
    assert [tuple(setting.values()) for setting in grid(plan)] == [
        (1e-3, 4), (1e-3, {"image": 8, "text": 4}), (1e-2, 4), (1e-2, {"image": 8, "text": 4}),
    ]  # fmt: skip
    found = search_of(plan)
    assert found.ask() == grid(plan) and found.ask() == []


def test_random_settings_differ_and_depend_on_the_seed_alone(tmp_path):
    def settings(seed, **fields):
        return drawn(small.plan(tmp_path, search="random", search_seed=seed, **fields))

    lists = dict(lr=[1e-3, 1e-2, 1e-1], rank=[2, 4], trials=6)
    assert sorted(map(str, settings(0, **lists))) == sorted(
        map(str, grid(small.plan(tmp_path, **{**lists, "trials": None})))
    )
    ranges = dict(lr=Range(1e-4, 1e-1, log=True), rank=Range(2, 9), init=["official", "identity"], trials=50)
    found = settings(1, **ranges)
    assert found == settings(1, **ranges) and found != settings(2, **ranges)
    assert len({str(setting) for setting in found}) == 50
    assert all(1e-4 <= s["lr"] <= 1e-1 and s["rank"] in range(2, 10) for s in found)
    assert 10 < sum(s["lr"] < math.sqrt(1e-5) for s in found) < 40, "evenly on a logarithmic scale"
    assert len(settings(0, rank=Range(2, 4), trials=9)) == 3, "there are no more"
    assert {Range(1, 4, log=True).draw(random.Random(seed)) for seed in range(99)} == {1, 2, 3, 4}


def rounds(plan, value):
    """What is asked in every round, `value` saying how good a setting is."""
    searching, found = search_of(plan), []
    while settings := searching.ask():
        found.append(settings)
        searching.tell([value(setting) for setting in settings])
    return found


def good(setting):
    return Told(-((math.log10(setting["lr"]) + 2) ** 2) - 0.1 * (setting["rank"] != 4), [[0.1, 0.2]], False)


def test_tpe_asks_in_rounds_comes_close_and_repeats_itself(tmp_path):
    fields = dict(lr=Range(1e-5, 1e1, log=True), rank=[2, 4, 8], search="tpe", trials=30)
    plan = small.plan(tmp_path, **fields)
    found = rounds(plan, good)
    assert found == rounds(plan, good) != rounds(small.plan(tmp_path, **fields, search_seed=1), good)
    assert [len(settings) for settings in found] == [4] * 7 + [2]
    best = max((setting for settings in found for setting in settings), key=lambda setting: good(setting).value)
    assert 1e-3 < best["lr"] < 1e-1
    late = [setting for settings in found[-3:] for setting in settings]
    assert sum(good(s).value for s in late) / len(late) > sum(good(s).value for s in found[0]) / 4


def test_tpe_does_not_try_a_setting_again_and_hears_of_the_failed(tmp_path):
    plan = small.plan(tmp_path, lr=[1e-3, 1e-2], rank=[2, 4], search="tpe", trials=20)
    found = [setting for settings in rounds(plan, lambda s: Told(None, [], s["rank"] == 2)) for setting in settings]
    assert len({str(setting) for setting in found}) == len(found) <= 4


def test_a_run_is_ended_below_the_median_of_earlier_ones_at_the_same_epoch():
    earlier = [[0.1 * n, 0.1 * n + 0.1, 0.9] for n in range(1, search.STARTUP + 1)]
    assert not falls_behind([0.01], earlier[:-1]), "too few to tell"
    assert falls_behind([0.29], earlier) and not falls_behind([0.31], earlier)
    assert falls_behind([0.31, 0.32], earlier) and not falls_behind([0.45, 0.1], earlier), "its best so far counts"
    assert not falls_behind([], earlier)


def test_without_optuna_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"search: 'tpe' needs optuna: pip install 'mora-kernels\[sweep\]'"):
        search_of(small.plan(tmp_path, lr=[1e-3, 1e-2], search="tpe", trials=2))
    assert len(search_of(small.plan(tmp_path, lr=[1e-3, 1e-2])).ask()) == 2, "a grid needs no package"


def test_a_pruned_sweep_that_was_killed_ends_in_the_same_bits(tmp_path, monkeypatch):
    """A round of four settings, and a fifth that is ended after its first epoch: killed in that epoch."""
    plan = dict(lr=Range(1e-5, 1e-1, log=True), search="tpe", trials=5, prune=True, seeds=[1], batch=40)
    monkeypatch.setattr(cell, "falls_behind", lambda curve, earlier: len(earlier) == 4 and len(curve) == 1)
    whole = small.run(tmp_path / "whole", test=False, **plan)
    assert [setting.state for setting in whole.settings] == ["done"] * 4 + ["pruned"]
    pruned = whole.settings[-1]
    assert len(pruned.rows[0].curve) == 1 and pruned.error.endswith("earlier settings after epoch 1")
    assert not pruned.counts and pruned not in whole.ranked
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "runs" / "005-seed1")

    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        small.steps(patched, kill)
        with pytest.raises(KeyboardInterrupt):
            small.run(tmp_path / "killed", test=False, **plan)
    assert (tmp_path / "killed" / "runs" / "005-seed1" / "config.json").is_file()
    small.run(tmp_path / "killed", test=False, **plan)
    assert small.state(tmp_path / "killed")["rows"] == small.state(tmp_path / "whole")["rows"]
