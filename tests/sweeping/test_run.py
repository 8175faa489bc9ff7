"""What a sweep trains, finds, keeps and leaves behind."""

import pytest

from mora.towers.cutting import CutTower
from mora.training import load_run
from tests.sweeping import small
from tests.training import fakes

PROBE = 3  # rows with which a cell tries whether a tower can be cut
GRID = dict(lr=[1e-3, 2e-2], rank=[2, 4], seeds=[0, 1])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out, console = tmp_path_factory.mktemp("sweep") / "grid", small.console()
    outcome = small.run(out, told=console, **GRID)
    return out, outcome, console.file.getvalue()


def test_every_combination_with_every_seed_and_the_highest_mean_wins(finished):
    out, outcome, _ = finished
    expected = [(lr, rank, seed) for lr in (1e-3, 2e-2) for rank in (2, 4) for seed in (0, 1)]
    assert [(*row.values.values(), row.seed) for row in outcome.rows] == expected
    assert all(row.state == "done" and len(row.curve) == 2 for row in outcome.rows)
    means = {s.number: sum(s.scores) / 2 for s in outcome.settings}
    assert outcome.winner.number == max(means, key=lambda number: (means[number], -number))
    assert outcome.winner.spread.mean == pytest.approx(max(means.values()))
    found = small.state(out)
    assert found["winner"]["setting"] == outcome.winner.number
    assert found["plan"]["fields"] == {"lr": [1e-3, 2e-2], "rank": [2, 4]}
    assert "torch" in found["versions"]
    assert (out / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in out.iterdir()} == {"sweep.json", "plot.png", "runs"}


def test_a_cell_is_what_mora_train_does_and_the_winner_is_tested_as_it_tests(finished, tmp_path):
    out, outcome, _ = finished
    winner = outcome.winner
    alone = fakes.trainer(tmp_path / "alone", **{**small.BASE, **winner.values, "seed": 1}).fit()
    row = next(row for row in winner.rows if row.seed == 1)
    assert (row.validation, row.best_epoch, row.parameters) == (alone.validation, alone.best_epoch, alone.parameters)
    assert outcome.test[1] == alone.test
    folder = out / "runs" / f"{winner.number:03}-seed1"
    run = load_run(folder, backbone=fakes.backbone())
    assert run.result["validation"] == row.validation and not run.model.training


def test_the_terminal_fits_80_columns_and_says_what_is_certain(finished):
    _, outcome, shown = finished
    lines = shown.splitlines()
    long = [line for line in lines if len(line) > 80]
    assert all(
        line.startswith(("grid, 4 settings x 2 seeds: lr 0.001 | 0.02; rank 2 | 4", "Written: ")) for line in long
    )
    assert f"Best on validation: setting {outcome.winner.number}" in shown
    assert "paired by seed" in shown and "On the test split" in shown


def test_the_same_call_trains_nothing_and_tests_nothing_again(finished, monkeypatch):
    out, outcome, _ = finished
    before = (out / "sweep.json").read_text()
    for name in ("train_cell", "score_test"):
        monkeypatch.setattr(f"mora.sweeping.run.{name}", lambda *_, **__: pytest.fail("it was over"))
    again = small.run(out, **GRID)
    assert again.rows == outcome.rows and again.test == outcome.test
    assert (out / "sweep.json").read_text() == before


def test_another_plan_in_the_same_folder_is_refused_by_the_name_of_the_field(finished):
    out, _, _ = finished
    for change, message in (
        (dict(lr=[1e-3]), r"lr: .*\[0.001, 0.02\], this call has \[0.001\]"),
        (dict(seeds=[0, 1, 2]), r"seeds: .*\[0, 1\]"),
        (dict(epochs=3), r"epochs: .* started with 2, this call has 3"),
        (dict(alpha=0.5), r"alpha: .* started with 0.1, this call has 0.5"),
        (dict(rank=4), r"rank: .*started with \[2, 4\], this call has"),
        (dict(search="random", trials=4), r"search: .*'grid', this call has 'random'"),
        (dict(missing="none"), r"missing.train: .*both:0.5.*use another --out"),
    ):
        with pytest.raises(ValueError, match=message):
            small.run(out, **{**GRID, **change})
    assert small.plan(out, **GRID, device="auto", log_every=7).run(
        1, fakes.backbone(), fakes.splits(), small.console()
    ), "what moves no number may differ"


def test_other_data_under_the_same_plan_is_refused(finished, tmp_path):
    out, _, _ = finished
    with pytest.raises(ValueError, match=r"data.fingerprints.train: .*001-seed0 was started with 'train-40'"):
        small.run(out, fakes.splits(41), **GRID)


class Closed(fakes.Rows):
    """A split that must not be touched."""

    def __getattribute__(self, name):
        if name in ("__len__", "labels", "available", "all_labels", "images", "rows", "stamp", "fingerprint", "metric"):
            raise AssertionError(f"the test split was read: {name}")
        return super().__getattribute__(name)

    def __len__(self):
        raise AssertionError("the test split was read: len")

    def __getitem__(self, index):
        raise AssertionError("the test split was read: row")


def test_the_test_split_is_not_touched_before_the_winner_is_chosen(tmp_path):
    splits = fakes.splits()
    splits["test"].__class__ = Closed
    with pytest.raises(AssertionError, match="the test split was read"):
        small.run(tmp_path / "s", splits, lr=[1e-3, 1e-2], seeds=[0])
    found = small.state(tmp_path / "s")
    assert [row["state"] for row in found["rows"]] == ["done", "done"]
    assert found["winner"] is not None and found["winner"]["test"] is None
    outcome = small.run(tmp_path / "s", lr=[1e-3, 1e-2], seeds=[0])
    assert set(outcome.test[0]) == {"accuracy", "macro_accuracy"}


def test_the_frozen_blocks_run_once_for_each_cut(tmp_path, monkeypatch):
    prefix, rows = CutTower.prefix, []

    def counting(self, model, inputs, first, *others, **named):
        if self.modality == "image" and len(inputs) > PROBE:
            rows.append((first, len(inputs)))
        return prefix(self, model, inputs, first, *others, **named)

    monkeypatch.setattr(CutTower, "prefix", counting)
    plan = dict(lr=[1e-3, 1e-2], last_layers=[1, 2], seeds=[0], epochs=1)
    outcome = small.run(tmp_path, test=False, **plan)
    by_cut = {first: sum(count for at, count in rows if at == first) for first, _ in rows}
    assert by_cut == {2: 40 + 15, 3: 40 + 15}, "rows of training and validation"
    assert outcome.test is None and small.state(tmp_path)["winner"]["test"] is None
    assert set(small.run(tmp_path, **plan).test) == {0}, "a later call tests"
