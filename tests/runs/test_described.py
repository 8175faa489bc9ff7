"""A CLIP that a folder describes itself: what it says is data, and nothing that a shared run names runs code."""

import gzip
import json
import os
import shutil

import open_clip
import pytest
import torch
from transformers import dynamic_module_utils

from mora.cli import main
from mora.evaluation.predict import predict
from mora.export import merge_run
from mora.runs.described import DESCRIPTION, check_text_tower, no_code_from_elsewhere
from mora.training import load_backbone, load_run
from tests.data import synthetic
from tests.evaluation.fakes import write_run
from tests.runs.test_backbone import SIZES

EVIL = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import PreTrainedTokenizerFast
class Evil(PreTrainedTokenizerFast):
    pass
"""
VOCABULARY = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1, "[PAD]": 2}, "unk_token": "[UNK]"},
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder that open_clip loads, and a run trained on it."""
    root = tmp_path_factory.mktemp("world")
    merge_run(write_run(root / "tiny"), root / "clip")
    return root / "clip", write_run(root / "run", name=f"local-dir:{root / 'clip'}")


@pytest.fixture
def shared(world, tmp_path):
    """Copies of both, as somebody else may hand them over, and what changes the description."""
    clip, run = shutil.copytree(world[0], tmp_path / "clip"), shutil.copytree(world[1], tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["backbone"]["name"] = f"local-dir:{clip}"
    (run / "config.json").write_text(json.dumps(config))
    return clip, run


def describe(clip, **settings):
    """Change settings by dotted name."""
    config = json.loads((clip / DESCRIPTION).read_text())
    for name, value in settings.items():
        *path, last = name.split("__")
        place = config
        for part in path:
            place = place[part]
        place[last] = value
    (clip / DESCRIPTION).write_text(json.dumps(config))


def poison(clip, marker, trust=True):
    """A tokenizer with code of its own, which the description trusts."""
    (clip / "tokenization_evil.py").write_text(EVIL.format(marker=str(marker)))
    (clip / "tokenizer.json").write_text(json.dumps(VOCABULARY))
    settings = {"auto_map": {"AutoTokenizer": [None, "tokenization_evil.Evil"]}, "tokenizer_class": "Evil"}
    (clip / "tokenizer_config.json").write_text(json.dumps({**settings, "unk_token": "[UNK]", "pad_token": "[PAD]"}))
    options = {"trust_remote_code": True} if trust else {}
    describe(clip, model_cfg__text_cfg__hf_tokenizer_name="any/name", model_cfg__text_cfg__tokenizer_kwargs=options)


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """Where transformers would put code of others."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


def commands(clip, run, tmp_path):
    data = synthetic.manifest(tmp_path)
    yield ["predict", "--model", run, "--text", "a"]
    yield ["merge", "--model", run, "--out", tmp_path / "out"]
    yield ["evaluate", "--model", run, "--data", data, "--out", tmp_path / "out"]
    yield ["train", "--backbone", f"local-dir:{clip}", "--data", data, "--out", tmp_path / "out"]


def test_a_run_on_a_folder_works(world):
    run = load_run(world[1])
    assert predict(run, text="a pear").missing == "image"
    tiny = load_run(world[1].parent / "tiny")
    assert torch.equal(run.tokenize(["a pear tree"]), tiny.tokenize(["a pear tree"]))


def test_open_clip_alone_would_run_the_code(shared, tmp_path):
    clip, _ = shared
    poison(clip, tmp_path / "marker")
    open_clip.get_tokenizer(f"local-dir:{clip}")
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("trust", [True, False])
def test_no_command_runs_code_of_a_shared_run(shared, tmp_path, capsys, monkeypatch, trust):
    clip, run = shared
    poison(clip, tmp_path / "marker", trust)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    for command in commands(clip, run, tmp_path):
        code = main([*map(str, command)])
        said = capsys.readouterr().err
        assert code == 2 and said.count("\n") == 1, said
        assert ("tokenizer_kwargs has 'trust_remote_code'" if trust else "custom code") in said
        assert not (tmp_path / "marker").exists() and not (tmp_path / "out").exists()


REFUSED = {
    "tower-by-path": ({"model_cfg__text_cfg__hf_model_name": "/tmp/x"}, "hf_model_name is '/tmp/x', expected a name"),
    "tower-above": ({"model_cfg__text_cfg__hf_model_name": "../x"}, "hf_model_name is '../x', expected a name"),
    "timm-hub": ({"model_cfg__vision_cfg__timm_model_name": "hf-hub:a/b"}, "timm_model_name is 'hf-hub:a/b'"),
    "timm-path": ({"model_cfg__vision_cfg__timm_model_name": "local-dir:x"}, "timm_model_name is 'local-dir:x'"),
    "merges-elsewhere": ({"model_cfg__text_cfg__tokenizer_kwargs": {"bpe_path": "../x"}}, "a file of this folder"),
    "merges-number": ({"model_cfg__text_cfg__tokenizer_kwargs": {"bpe_path": 1}}, "bpe_path is 1"),
    "revision": ({"model_cfg__text_cfg__tokenizer_kwargs": {"code_revision": "x"}}, "'code_revision'"),
    "layers": ({"model_cfg__text_cfg__layers": 10**9}, "text_cfg.layers is 1000000000, expected at most 1,024"),
    "tower": ({"model_cfg__text_cfg__width": 1 << 24, "model_cfg__text_cfg__layers": 1024}, "expected what fits in"),
    "width": ({"model_cfg__vision_cfg__width": 1e300}, "vision_cfg.width is 1e.300, expected at most"),
    "no-model": ({"model_cfg": 3}, "model_cfg is 3, expected an object"),
    "no-tower": ({"model_cfg__text_cfg": None}, "model_cfg.text_cfg is None, expected an object"),
    "unknown": ({"model_cfg__text_cfg__colour": "red"}, "cannot be loaded: .*colour"),
    "other-shape": ({"model_cfg__embed_dim": 64}, "cannot be loaded: .*size mismatch"),
    "no-width": ({"model_cfg__text_cfg__width": "wide"}, "cannot be loaded"),
    "size": ({"preprocess_cfg__size": 10**6}, "preprocess_cfg.size is 1000000, expected 1 to 8,192 pixels"),
    "nan": ({"preprocess_cfg__mean": [0.1, float("nan"), 0.2]}, f"{DESCRIPTION}: got the number NaN, expected finite"),
    "mean": ({"preprocess_cfg__mean": [0.1, 0.2]}, "preprocess_cfg.mean is .*expected three numbers"),
    "std": ({"preprocess_cfg__std": [0, 1, 1]}, "preprocess_cfg.std is .*expected three numbers"),
    "mode": ({"preprocess_cfg__mode": "CMYK"}, "preprocess_cfg.mode is 'CMYK', expected RGB"),
    "resize": ({"preprocess_cfg__resize_mode": ["x"]}, "preprocess_cfg.resize_mode is"),
    "fill": ({"preprocess_cfg__fill_color": "white"}, "preprocess_cfg.fill_color is 'white'"),
    "list": ({"preprocess_cfg": []}, "preprocess_cfg is .., expected an object"),
}


@pytest.mark.parametrize(("settings", "said"), REFUSED.values(), ids=REFUSED)
def test_a_description_that_is_refused(shared, settings, said):
    clip, _ = shared
    describe(clip, **settings)
    with pytest.raises(ValueError, match=said) as caught:
        load_backbone(f"local-dir:{clip}")
    assert "\n" not in str(caught.value)


def test_a_link_to_nothing_in_the_folder_is_left_alone(shared):
    clip, _ = shared
    (clip / "old.bin").symlink_to("nowhere")
    load_backbone(f"local-dir:{clip}")


def test_files_of_the_folder(shared):
    clip, _ = shared
    name = f"local-dir:{clip}"
    merges = (clip / "merges.txt.gz").read_bytes()
    (clip / "merges.txt.gz").write_bytes(gzip.compress(b"\0" * (1 << 26) + b"\0"))
    with pytest.raises(ValueError, match="67,108,864 bytes unpacked"):
        load_backbone(name)
    (clip / "merges.txt.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="merges.txt.gz: got a file that is not gzip"):
        load_backbone(name)
    (clip / "merges.txt.gz").write_bytes(merges)
    weights = clip / "open_clip_model.safetensors"
    weights.unlink()
    (clip / "classifier.safetensors").unlink()
    with pytest.raises(ValueError, match="cannot be loaded: Required pretrained weights"):
        load_backbone(name)
    os.mkfifo(weights)
    with pytest.raises(ValueError, match="open_clip_model.safetensors, which is a pipe, expected a regular file"):
        load_backbone(name)
    weights.unlink()
    (clip / DESCRIPTION).write_text("[" * 100_000)
    with pytest.raises(ValueError, match=f"{DESCRIPTION}: got JSON nested 100,000 deep"):
        load_backbone(name)
    with pytest.raises(FileNotFoundError, match="backbone: got 'local-dir:nowhere', which is no folder"):
        load_backbone("local-dir:nowhere")
    for name in ("hf-hub:", "hf-hub:../x", "hf-hub:/etc/passwd"):
        with pytest.raises(ValueError, match="expected hf-hub:OWNER/NAME"):
            load_backbone(name)


@pytest.mark.parametrize(
    "setting",
    [
        {"attn_implementation": "somebody/kernel"},
        {"text_config": {"_attn_implementation": "somebody/kernel"}},
        {"experts_implementation": "somebody/kernel"},
        {"quantization_config": {"quant_method": "awq"}},
    ],
)
def test_a_text_tower_of_hugging_face_names_no_kernels(tmp_path, setting):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta", **setting}))
    with pytest.raises(ValueError, match="config.json of .* sets"):
        check_text_tower(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta", "attn_implementation": "sdpa"}))
    check_text_tower(str(tmp_path))


def test_a_text_tower_with_code_of_its_own_is_refused_without_a_question(tmp_path, monkeypatch):
    from transformers import AutoConfig

    monkeypatch.setattr("builtins.input", lambda *_: "y")
    marker = tmp_path / "marker"
    (tmp_path / "configuration_evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    settings = {"model_type": "evil", "auto_map": {"AutoConfig": "configuration_evil.Evil"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with no_code_from_elsewhere(), pytest.raises(ValueError, match="custom code"):
        AutoConfig.from_pretrained(tmp_path)
    assert not marker.exists()


class Pickled:
    """Touches a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_weights_that_are_no_checkpoint(tmp_path, capsys):
    """`pretrained` of a shared run may name any file: it is read as plain tensors or not at all."""
    marker = tmp_path / "marker"
    torch.save({"state_dict": Pickled(marker)}, tmp_path / "pickle.pt")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    (tmp_path / "empty.pt").touch()
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({}, tmp_path / "nothing.pt")
    torch.save({"a": torch.ones(2)}, tmp_path / "other.pt")
    (tmp_path / "text.safetensors").write_text("not a checkpoint")
    (tmp_path / "text.npz").write_text("not a checkpoint")
    os.mkfifo(tmp_path / "pipe.pt")
    model = "mora-test-small"
    (tmp_path.parent / f"{model}.json").write_text(json.dumps(SIZES))
    open_clip.add_model_config(tmp_path.parent / f"{model}.json")
    for path in sorted(tmp_path.glob("*.*")):
        arguments = ["train", "--data", "openmoji", "--out", str(tmp_path / "run"), "--backbone", model]
        assert main([*arguments, "--pretrained", str(path)]) == 2, path
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and str(path) in said, said
        assert not marker.exists() and not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="files that can run code are not read"):
        load_backbone(model, str(tmp_path / "pickle.pt"))
