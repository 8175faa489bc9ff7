"""A run's config.json with wrong insides: every field that is used is checked, and named, before it is used."""

import json
import math
import shutil

import pytest

from mora.cli import main
from mora.runs.run import load_run, read_config
from tests.data import synthetic
from tests.evaluation.fakes import write_run

ODD = (None, 3, 1e400, -1, True, "", "a\0b", [], [[]], {}, {"a": {}}, "x" * 100_000, [1], 10**400)
FIELDS = {
    "data": {*range(14)} - {9},
    "data.source": {0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13},
    "data.name": {0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13},
    "data.classes": {*range(14)},
    "data.metric": {*range(14)},
    "data.multi_label": {*range(14)} - {4},
    "data.rows": {*range(14)} - {9},
    "data.fingerprints": {*range(14)} - {9},
    "data.options": {*range(14)} - {9},
    "backbone": {*range(14)},
    "backbone.name": {0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13},
    "backbone.pretrained": {1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13},
    "backbone.sha256": {*range(14)},
    "mora": {*range(14)} - {9},
    "mora.rank": {*range(14)} - {1, 13},
    "mora.alpha": {*range(14)} - {1, 13},
    "mora.targets": {*range(14)},
    "mora.last_layers": {*range(14)} - {1, 13},
    "mora.backend": {*range(14)},
    "method": {*range(14)},
    "head": {*range(14)},
    "missing_embedding": {*range(14)},
    "token_policy": {*range(14)},
    "lora_scale": {*range(14)} - {1},
    "prompts": {*range(14)},
    "tables": {*range(14)} - {9},
    "train": {*range(14)} - {9, 10},
    "versions": {*range(14)} - {9},
    "processes": {*range(14)} - {1},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("stored") / "run")


def change(folder, name, value, file="config.json"):
    content = json.loads((folder / file).read_text())
    *path, last = name.split(".")
    place = content
    for part in path:
        place = place[part]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    (folder / file).write_text(json.dumps(content))


@pytest.mark.parametrize("name", FIELDS)
def test_a_wrong_field_is_named(run, tmp_path, name):
    good = (run / "config.json").read_text()
    for position in sorted(FIELDS[name]):
        (tmp_path / "config.json").write_text(good)
        change(tmp_path, name, ODD[position])
        said = "got the number Infinity, expected finite ones" if ODD[position] == math.inf else f".*{name}"
        with pytest.raises(ValueError, match=f"config.json: {said}") as caught:
            read_config(tmp_path)
        assert len(str(caught.value)) < 1000 and "\0" not in str(caught.value)


@pytest.mark.parametrize("name", ["data", "data.classes", "backbone.pretrained", "backbone.sha256", "mora", "method"])
def test_a_field_that_is_absent_is_named(run, tmp_path, name):
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    change(tmp_path, name, KeyError)
    with pytest.raises(ValueError, match=f"config.json: '{name}' is (absent|None), expected"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epoch", "x"),
        ("validation", [1]),
        ("validation", {"a": "b"}),
        ("validation", {"a": 10**400}),
        ("test", 3),
        ("patterns", {"complete": {"rows": "x"}}),
    ],
)
def test_a_wrong_result_is_named(run, tmp_path, name, value):
    shutil.copytree(run, tmp_path / "run")
    change(tmp_path / "run", name, value, "best/result.json")
    with pytest.raises(ValueError, match=f"best/result.json: '{name}' is .*, expected"):
        load_run(tmp_path / "run")


def test_every_command_says_it_in_one_line(run, tmp_path, capsys):
    folder, data = shutil.copytree(run, tmp_path / "run"), synthetic.manifest(tmp_path)
    change(folder, "data.classes", [["a"], "b"])
    for command in (
        ["predict", "--model", folder, "--text", "a"],
        ["merge", "--model", folder, "--out", tmp_path / "out"],
        ["evaluate", "--model", folder, "--data", data, "--out", tmp_path / "out"],
        ["train", "--data", data, "--out", folder, "--resume", "--limit", "8"],
    ):
        assert main([*map(str, command)]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"mora {command[0]}: {folder}/config.json: 'data.classes' is [['a'], 'b']"), said


def test_what_a_config_leaves_out_is_not_needed(run, tmp_path, capsys):
    """Fields that only describe may be absent: the card and the answer do without."""
    folder = shutil.copytree(run, tmp_path / "run")
    for name in ("data.rows", "data.fingerprints", "tables", "versions", "train", "mora.last_layers"):
        change(folder, name, KeyError)
    assert main(["predict", "--model", str(folder), "--text", "a"]) == 0
    assert main(["merge", "--model", str(folder), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err == ""


def test_the_backend_of_a_file_is_not_asked_for(tmp_path, monkeypatch):
    """What computed an adapter is not part of it: it loads where that backend cannot run."""
    import mora
    from tests.mora.models import open_clip_model

    folder = mora.save_adapter(mora.patch(open_clip_model(), backend="reference"), tmp_path / "adapter")
    assert json.loads((folder / "adapter_config.json").read_text())["config"]["backend"] == "auto"
    change(folder, "config.backend", "triton", "adapter_config.json")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    mora_kernels_missing()
    assert mora.summary(mora.load_adapter(open_clip_model(), folder)).projections[0].backend == "torch"
    patched = mora.patch(open_clip_model(), backend="reference")
    assert mora.summary(mora.load_adapter(patched, folder)).projections[0].backend == "reference"


def mora_kernels_missing():
    from mora_kernels import backend

    assert backend.missing("cpu", -1, "float32").startswith("Triton has no CPU compiler")
