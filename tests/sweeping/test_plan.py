"""What a plan takes and refuses, in words that name the argument."""

import json
import re

import pytest

import mora
from mora.sweeping.space import Range, word, words
from tests.sweeping import small


def test_lists_and_ranges_are_searched_and_everything_else_is_shared(tmp_path):
    plan = small.plan(
        tmp_path, preset="food101", lr=[1e-3, 1e-2], targets=[("q", "v"), ("q", "k", "v")], rank={"image": 4, "text": 4}
    )
    assert list(plan.fields) == ["lr", "targets"] and plan.seeds == (0, 1, 2) and plan.combinations == 4
    assert plan.base.mora.rank == {"image": 4, "text": 4} and plan.base.weight_decay == 0.02
    config = plan.config({"lr": 1e-2, "targets": ("q", "k", "v")}, 7, 3)
    assert (config.lr, config.mora.targets, config.seed) == (1e-2, ("q", "k", "v"), 7)
    assert config.out == str(tmp_path / "runs" / "003-seed7") and config.mora.rank == plan.base.mora.rank
    assert plan.to_dict() == json.loads(json.dumps(plan.to_dict()))
    assert mora.Sweep.make("rows", tmp_path, lr=[1e-3]).describe() == "grid, 1 settings x 3 seeds: lr 0.001"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "fields: got none with several values, expected one at least"),
        ({"lr": []}, "lr: got [], expected a list of values, or a Range"),
        ({"lr": [0.1, 0.1]}, "lr: got 0.1 twice, expected each value once"),
        ({"lr": [0.1, -1]}, "lr: got -1, expected a number above 0"),
        ({"rank": [4, "x"]}, "rank: got 'x', expected an int"),
        ({"rate": [1, 2]}, "rate: got an unknown field, expected some of accumulation, adapt"),
        ({"seed": [1, 2]}, "seed: got [1, 2], expected seeds=[...]"),
        ({"variant": ["no-gram"]}, "variant: got several values, expected method='mora-no-gram'"),
        ({"limit": [5, 6]}, "limit: got several values, expected one: it decides what validation measures"),
        ({"device": ["cpu", "cuda"]}, "device: got several values, expected one: it says where and how to run"),
        ({"missing": ["both:0.5", "text:0.5"]}, "missing: got 'both:0.5', 'text:0.5' for validation, expected one"),
        ({"lr": [1], "seeds": [1, 1]}, "seeds: got [1, 1], expected each once"),
        ({"lr": [1], "seeds": []}, "seeds: got (), expected whole numbers, one at least"),
        ({"lr": [1], "search": "best"}, "search: got 'best', expected one of 'grid', 'random', 'tpe'"),
        ({"lr": [1], "trials": 3}, "trials: got 3 with search='grid', expected None"),
        ({"lr": [1], "search": "tpe"}, "trials: got None with search='tpe', expected at least 1"),
        ({"lr": [1, 2], "search": "random", "trials": 3}, "trials: got 3, expected at most 2"),
        ({"lr": Range(1, 2)}, "lr: got a range with search='grid', expected a list, or 'random' or 'tpe'"),
        ({"lr": Range(-1, 2), "search": "tpe", "trials": 2}, "lr: got -1, expected a number above 0"),
        ({"lr": [1], "prune": True}, "prune: got True with search='grid', expected 'tpe'"),
        ({"epochs": [1], "prune": True, "search": "tpe", "trials": 1}, "prune: got True with epochs searched"),
        ({"lr": [1], "search": "tpe", "trials": 1, "search_seed": -1}, "search_seed: got -1, expected a whole number"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path, fields, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        mora.Sweep.make("rows", tmp_path, **fields)


@pytest.mark.parametrize("ends", [(2, 1), (1, 1), (1, float("inf")), (True, 2), ("1", 2)])
def test_a_range_rises(ends):
    with pytest.raises(ValueError, match="range: got .*, expected two numbers that rise"):
        Range(*ends)
    with pytest.raises(ValueError, match="range: got 0 as the low end of a logarithmic one"):
        Range(0, 1, log=True)


def test_a_value_may_need_the_values_of_other_fields(tmp_path):
    with pytest.raises(ValueError, match="common_rank: got None with rank"):
        small.plan(tmp_path, rank=[4, {"image": 8, "text": 4}])
    assert small.plan(tmp_path, rank=[4, {"image": 8, "text": 4}], common_rank=[4, 8])
    assert small.plan(tmp_path, missing=["train=both:0.5,validation=both:0.7", "train=both:0.9,validation=both:0.7"])


def test_values_read_as_they_are_typed():
    values = {
        "lr": 0.00123456,
        "rank": {"image": 8, "text": 4},
        "targets": ("q", "v"),
        "layers": None,
        "init": "identity",
    }
    assert words(values) == "lr 0.001235, rank image=8 text=4, targets q,v, layers none, init identity"
    assert word(1e-5) == "1e-05"


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"out: got .*not empty \(notes.txt\) and holds no sweep"):
        small.run(tmp_path, lr=[1e-3])
    with pytest.raises(ValueError, match="out: got .*which is a file, expected a folder"):
        small.run(tmp_path / "notes.txt", lr=[1e-3])
    with pytest.raises(ValueError, match="jobs: got 0, expected an int of at least 1"):
        small.run(tmp_path / "new", jobs=0, lr=[1e-3])
    assert not (tmp_path / "new").exists()
