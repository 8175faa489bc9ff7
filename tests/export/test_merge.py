"""`mora merge`: what it writes loads without mora, answers as the adapted model did, and says where it comes from."""

import json
import re
import subprocess
import sys

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from mora.cli import main
from mora.export import merge_run
from mora.export.card import UNKNOWN, licence_of
from mora.export.formats import hugging_face_tokenizer
from mora.runs.backbone import load_backbone
from mora.runs.run import load_run
from mora.towers import recipe_of
from mora_kernels.testing import assert_parity
from tests.evaluation.fakes import write_run

TABLE = {torch.float32: 1e-5}
METHODS = ("mora", "mora-no-gram", "mora-no-specific", "lora", "dora", "bitfit", "last-block", "linear")
WITHOUT_MORA = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mora", "mora_kernels"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The name of a small CLIP with CLIP's own tokenizer and preprocessing, as open_clip loads it from a folder."""
    folder = tmp_path_factory.mktemp("small")
    config = {
        "model_cfg": {
            "embed_dim": 32,
            "quick_gelu": True,
            "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 48},
            "text_cfg": {"layers": 2, "width": 32, "heads": 2, "vocab_size": 49408, "context_length": 77},
        },
        "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**config["model_cfg"]).state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def code_of(folder):
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    assert "import mora" not in code
    return code


@pytest.mark.parametrize("method", METHODS)
def test_every_method_folds_into_a_plain_model(tmp_path, method):
    run = load_run(write_run(tmp_path / "run", method))
    image, text = torch.randn(2, 3, 64, 64), run.tokenize(["a plum", "fig"])
    with torch.no_grad():
        expected = run.model(image, text)
    found = merge_run(run, tmp_path / "merged")
    assert found["rows"] == 24
    assert found["changed_predictions"] == 0
    clip, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'merged'}")
    assert list(clip.state_dict()) == list(load_backbone("tiny").model.state_dict())
    head = load_file(tmp_path / "merged/classifier.safetensors")
    with torch.no_grad():
        features = torch.cat([clip.eval().encode_image(image), clip.encode_text(text)], dim=-1)
        assert_parity("logits", features @ head["weight"].T + head["bias"], expected, TABLE)


# every pair of a backbone, a library and a kind of task
@pytest.mark.parametrize(
    ("name", "library", "metric", "policy"),
    [
        ("tiny", "open_clip", "accuracy", "official"),
        ("tiny", "hugging_face", "macro_f1", "plain"),
        ("small", "open_clip", "macro_f1", "plain"),
        ("small", "hugging_face", "accuracy", "official"),
    ],
)
def test_the_card_s_code_runs_and_answers_as_the_run_did(
    request, tmp_path, monkeypatch, capsys, name, library, metric, policy
):
    backbone = name if name == "tiny" else request.getfixturevalue(name)
    folder = write_run(tmp_path / "run", metric=metric, token_policy=policy, name=backbone)
    run = load_run(folder)
    assert main(["merge", "--model", str(folder), "--out", str(tmp_path / "merged"), "--format", library]) == 0
    assert "0 of 24 predictions change" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path / "merged")
    long = "word " * 100 if policy == "official" else "a text"
    names = {}
    exec(code_of(tmp_path / "merged").replace('"a text"', repr(long)), names)
    with torch.no_grad():
        expected = run.model(run.model.missing_image[None], run.tokenize([long]))
    assert_parity("logits", names["logits"], expected, TABLE)
    answer = capsys.readouterr().out.strip()
    if metric == "accuracy":
        assert answer == run.classes[int(expected.argmax())]
    else:
        assert answer == str([c for c, z in zip(run.classes, expected[0], strict=True) if z > 0])


HEADS = [
    ("pattern-bias", "substitute", "open_clip"),
    ("pattern-bias", "learned", "hugging_face"),
    ("prototypes", "zero", "open_clip"),
    ("linear", "learned", "open_clip"),
    ("zero-shot", "substitute", "open_clip"),
]


@pytest.mark.parametrize(("head", "missing_embedding", "library"), HEADS)
def test_the_card_s_code_knows_every_head(tmp_path, monkeypatch, head, missing_embedding, library):
    """With both modalities and with either; the folder holds what stands for a missing embedding."""
    run = load_run(write_run(tmp_path / "run", "linear", head=head, missing_embedding=missing_embedding))
    image, text = run.model.missing_image[None], run.tokenize(["a text"])
    with torch.no_grad():
        expected = {
            (True, True): run.model(image, text),
            (True, False): run.model(image),
            (False, True): run.model(text=text),
        }
    assert merge_run(run, tmp_path / "merged", library)["changed_predictions"] == 0
    about = json.loads((tmp_path / "merged/classifier.json").read_text())
    assert (about["head"], about["missing_embedding"]) == (head, missing_embedding)
    assert about["patterns"] == [["image"], ["text"], ["image", "text"]]
    code = code_of(tmp_path / "merged")
    monkeypatch.chdir(tmp_path / "merged")
    for there, wanted in expected.items():
        names, given = {}, code.replace("there = [True, True]", f"there = {[*there]}")
        assert there == (True, True) or given != code
        if missing_embedding == "substitute" and not there[1]:
            given = given.replace('"a text"', '""')
        exec(given, names)
        assert_parity("logits", names["logits"], wanted, TABLE)


def test_it_loads_without_mora(tmp_path):
    merge_run(write_run(tmp_path / "run"), tmp_path / "merged")
    code = WITHOUT_MORA + code_of(tmp_path / "merged")
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path / "merged", check=False
    )
    assert result.stdout.strip() in ("apple", "pear", "plum", "fig"), result.stderr


def test_the_card_says_where_it_comes_from(tmp_path):
    folder = write_run(tmp_path / "run", "lora")
    (folder / "result.json").write_text(json.dumps({"test": {"accuracy": 0.375}}))
    merge_run(folder, tmp_path / "merged")
    card, about = (
        (tmp_path / "merged/README.md").read_text(),
        json.loads((tmp_path / "merged/classifier.json").read_text()),
    )
    for said in (
        "license: apache-2.0", "| accuracy | 50.00 | 37.50 |", "| lora_alpha / rank | 1.0 |", "`abababababababab`",
        "both 70 %", "A rate counts what is MISSING", "CC BY-SA 4.0", "not known here: that of your data",
    ):  # fmt: skip
        assert said in card
    assert "alpha | 0.05" not in card  # MoRA's own
    assert about["classes"] == ["apple", "pear", "plum", "fig"]
    assert about["test"] == {"accuracy": 0.375}
    assert about["run"]["data"]["fingerprints"] == {"train": "ab" * 32}
    assert str(tmp_path) not in card


def test_twice_is_the_same_and_replaces(tmp_path):
    folder, out = write_run(tmp_path / "run"), tmp_path / "merged"
    merge_run(folder, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "old").write_text("of an earlier version")
    merge_run(folder, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_both_tokenizers_agree():
    texts = ["a red fox, dog", "", "Hello  World! it's 42 café don't", "x" * 200, "one two " * 60]
    for backbone in (load_backbone("tiny"),):
        expected = backbone.tokenizer(texts)
        found = hugging_face_tokenizer(backbone)(texts, padding="max_length", truncation=True, return_tensors="pt")
        for one, other in zip(expected, found["input_ids"], strict=True):
            end = int(one.argmax())
            assert torch.equal(one[: end + 1], other[: end + 1])


def test_a_model_that_answers_otherwise_is_refused(tmp_path, monkeypatch):
    from mora.export import formats

    def write(folder, model, backbone):
        with torch.no_grad():
            next(model.parameters()).mul_(1.5)
        formats.write_open_clip(folder, model, backbone)

    monkeypatch.setitem(formats.WRITERS, "open_clip", write)
    with pytest.raises(ValueError, match="logits of the merged model differ by .* nothing was written"):
        merge_run(write_run(tmp_path / "run"), tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_models_without_that_form_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("mora.export.conversion.text_pool", lambda model: "last")
    with pytest.raises(ValueError, match="its text tower is pooled by 'last'"):
        merge_run(write_run(tmp_path / "run"), tmp_path / "merged", "hugging_face")
    assert not (tmp_path / "merged").exists()
    assert recipe_of(load_backbone("tiny").model).name == "open_clip"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "onnx"], "format: got 'onnx', expected one of 'open_clip', 'hugging_face'"),
        (["--out", "mine"], "out: got mine, which holds other files, expected a new or empty folder"),
        (["--out", "file"], "out: got file, which is a file, expected a folder"),
        (["--model", "nowhere"], "model: got nowhere (no such folder), expected a run folder"),
    ],
)
def test_refusals_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("")
    (tmp_path / "file").write_text("")
    write_run(tmp_path / "run")
    assert main(["merge", "--model", "run", "--out", "merged", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"mora merge: {message}")
    assert error.count("\n") == 1
    assert (tmp_path / "mine/thesis.tex").exists()


def test_a_file_that_is_called_like_a_tag_has_no_known_licence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert licence_of("ViT-B-16", "openai") != UNKNOWN
    (tmp_path / "openai").touch()
    assert licence_of("ViT-B-16", "openai") == UNKNOWN == licence_of("ViT-B-16", "weights/openai.pt")
