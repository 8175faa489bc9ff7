"""What is said and drawn of a sweep, from rows that are made up."""

import io

import pytest
import rich.console
from PIL import Image

from mora.evaluation.report import print_table
from mora.sweeping import plot
from mora.sweeping.outcome import Outcome, Row, remarks, table
from mora.sweeping.search import grid
from mora.sweeping.space import Range
from tests.sweeping import small

DATA = {"name": "rows_$x$", "source": "rows", "classes": ["a"], "rows": {}, "fingerprints": {}}


def outcome_of(plan, settings, score, **others):
    """An outcome in which `score(number, seed)` is a share, or how the cell ended."""
    rows = []
    for number, values in enumerate(settings, 1):
        for seed in plan.seeds:
            found = score(number, seed)
            if isinstance(found, str):
                rows.append(Row(number, seed, values, found, [], error=f"{found} at step 3"))
            else:
                rows.append(Row(number, seed, values, "done", [found], 1, {"accuracy": found}, 9))
    return Outcome(plan, "accuracy", rows, DATA, **others)


def shown(outcome):
    console = rich.console.Console(file=io.StringIO(), width=80)
    print_table(console, table(outcome))
    return console.file.getvalue()


def test_a_lead_within_the_spread_is_called_so(tmp_path):
    plan = small.plan(tmp_path, lr=[0.1, 0.2, 0.3, 0.4], seeds=[0, 1])
    values = {1: (0.5, 0.7), 2: (0.51, 0.69), 3: (0.2, 0.3), 4: (0.99, "failed")}
    outcome = outcome_of(plan, grid(plan), lambda n, s: values[n][s], test={0: {"accuracy": 0.5}, 1: {"accuracy": 0.6}})
    assert [setting.number for setting in outcome.ranked] == [1, 2, 3], "of equal means the first one; no failed one"
    assert remarks(outcome) == [
        "Best on validation: setting 1 (lr 0.1), accuracy 60.0 ± 14.1 % over 2 seeds. It was chosen by that figure, "
        "which flatters it.",
        "On the test split, which no other setting has seen: 55.0 ± 7.1 %.",
        "Not behind it by more than the spread, paired by seed: setting 2 of 2 others.",
        "Failed: setting 4. Setting 4: failed at step 3",
    ]
    assert outcome.best_run.name == "001-seed1"
    assert "It is ahead of every other setting by more than the spread" in " ".join(
        remarks(outcome_of(plan, grid(plan), lambda n, s: n / 10 + s / 100))
    )
    one = small.plan(tmp_path, lr=[0.1, 0.2], seeds=[0])
    said = remarks(outcome_of(one, grid(one), lambda n, s: 0.5))
    assert said[0].startswith("Best on validation: setting 1 (lr 0.1), accuracy 50.0 %. ") and "One seed" in said[1]


def test_the_table_fits_80_columns_whatever_is_searched(tmp_path):
    fields = dict(
        lr=[1e-5, 1e-1], alpha=[1e-3, 1e-2], rank=[4, {"image": 8, "text": 4}], common_rank=[4, 8],
        targets=[("q", "v"), ("q", "k", "v", "out")], method=["mora", "mora-no-gram"], seeds=[0, 1, 2],
    )  # fmt: skip
    plan = small.plan(tmp_path, **fields)
    outcome = outcome_of(plan, grid(plan), lambda n, s: 1.0 - (s == 0) * n / 100)
    lines = shown(outcome).splitlines()
    assert max(map(len, lines)) <= 80 and len(table(outcome).rows) == 20
    assert "98.3±" in shown(outcome) and "targets q,v" in " ".join(shown(outcome).split())
    few = small.plan(tmp_path, lr=[1e-5, 1e-1], alpha=[1e-3, 1e-2], seeds=[0])
    assert table(outcome_of(few, grid(few), lambda n, s: 0.5)).headings == [
        "setting", "lr", "alpha", "validation", "behind", "best epochs",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        (dict(lr=[1e-3, 1e-2, 1e-1], rank=[2, {"image": 8, "text": 4}], common_rank=4), None),
        (dict(lr=[1e-3, 1e-2, 1e-1]), None),
        (dict(method=["lora", "dora", "mora"]), None),
        (dict(lr=Range(1e-3, 1e-1, log=True), search="random", trials=3), [{"lr": r} for r in (0.03, 0.002, 0.05)]),
        (dict(lr=[1e-3, 1e-2], rank=[2, 4, 8], method=["lora", "mora"], alpha=[0.01, 0.1]), None),
    ],
    ids=["two", "one", "words", "range", "four"],
)
def test_every_number_of_fields_has_its_picture(tmp_path, fields, settings):
    plan = small.plan(tmp_path, **fields)
    settings = settings or grid(plan)
    drawn = plot.draw(outcome_of(plan, settings, lambda n, s: "failed" if n == 3 else 0.4 + n / 50 + s / 100))
    image = Image.open(io.BytesIO(drawn))
    assert image.format == "PNG" and image.width > 600 and image.convert("L").getextrema()[0] < 100
    plot.draw(outcome_of(plan, settings, lambda n, s: 0.5))  # all the same
