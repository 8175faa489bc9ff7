"""The documents say what the committed rows say; a run appends rows that the tables can read."""

import json
import os
from dataclasses import asdict

import pytest

from benchmarks import regression, rows, tables
from benchmarks.environment import ROOT
from tests.processes import Running


def test_documents_and_plots_are_what_the_rows_make_of_them():
    assert tables.stale(rows.read()) == []


def test_a_typed_number_is_found(monkeypatch):
    readme, found = (ROOT / "README.md").read_text(), rows.read()
    assert "61,440" in readme
    changed = ROOT / "benchmarks" / "results" / "never-written.md"
    monkeypatch.setattr(tables, "DOCUMENTS", (changed,))
    monkeypatch.setattr(type(changed), "read_text", lambda self, **_: readme.replace("61,440", "61,441"))
    monkeypatch.setattr(tables.plots, "stale", lambda found: [])
    assert tables.stale(found) == ["benchmarks/results/never-written.md"]


def test_every_row_says_where_it_comes_from():
    for row in rows.read():
        for name in ("commit", "date", "device", "torch", "triton", "level", "shape", "provider", "seconds"):
            assert row[name], (name, row)
        assert row["seconds"]["p20"] <= row["seconds"]["median"] <= row["seconds"]["p80"]


def timed(*options):
    """A run at full size, of one small case."""
    os.chdir(ROOT)
    given = ["benchmarks/test_operations.py", "--benchmark", "--device", "cpu", "-k", "gram and text and 512"]
    return int(pytest.main([*given, "-p", "no:cacheprovider", *options]))


def test_a_run_writes_rows_and_prints_them(tmp_path):
    ended = Running(timed, "--results", str(tmp_path), f"--benchmark-json={tmp_path / 'kept.json'}").end()
    assert ended.code == 0, ended.out + ended.err
    found = rows.read(tmp_path)
    assert {row["provider"] for row in found} == {"official", "torch"}
    assert "x official" in ended.out
    assert f"{len(found)} rows appended" in ended.out
    kept = json.loads((tmp_path / "kept.json").read_text())["benchmarks"]
    assert {entry["name"] for entry in kept} == {"official", "torch"}
    medians = {entry["name"]: entry["stats"]["median"] for entry in kept}
    for row in found:
        assert medians[row["provider"]] == pytest.approx(row["seconds"]["median"], rel=1e-4)


def test_a_wrong_result_prints_and_writes_nothing(tmp_path):
    plugin = tmp_path / "wrong.py"
    plugin.write_text(
        "import mora_kernels.numerics as path\nright = path.gram\npath.gram = lambda factor: 1.01 * right(factor)\n"
    )
    ended = Running(timed, "-p", "wrong", "--results", str(tmp_path / "rows"), places=[tmp_path]).end()
    assert ended.code == 1, ended.out + ended.err
    assert "relative L2" in ended.out
    assert "refused: 1 case has wrong results" in ended.out
    assert " x official" not in ended.out
    assert not (tmp_path / "rows").exists()


def test_a_damaged_row_is_named(tmp_path):
    (tmp_path / "projection.jsonl").write_text('{"level": "projection"}\n{"level": \n')
    with pytest.raises(ValueError, match=r"projection.jsonl, line 2: got no JSON"):
        rows.read(tmp_path)


def test_the_newest_row_of_a_case_is_shown():
    old, new = ({"level": "epoch", "shape": {"a": 1}, "mode": "eager", "provider": "torch", "device": "x",
                 "driver": None, "date": date} for date in ("2026-01-01", "2026-01-02"))  # fmt: skip
    assert rows.latest([old, new]) == [new]


def test_a_difference_within_the_noise_is_none():
    seconds = {"revision": [1.0, 1.1, 1.0], "revision again": [1.0, 1.0, 1.1], "tree": [1.0, 1.05, 1.0]}
    assert regression.compared("x", seconds).verdict == "no difference"
    assert regression.compared("x", {**seconds, "tree": [2.0, 2.1, 2.0]}).verdict == "slower"
    assert regression.compared("x", {**seconds, "tree": [0.5, 0.5, 0.5]}).verdict == "faster"
    assert asdict(regression.compared("x", seconds))["rounds"] == 3


def test_an_unknown_revision_is_named():
    with pytest.raises(ValueError, match="--baseline: got 'no-such-revision', expected a git revision"):
        regression.checkout("no-such-revision")
