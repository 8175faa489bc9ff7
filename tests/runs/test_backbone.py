"""Backbones by name, with their own substitutes and token policy; and what a run folder refuses."""

import json

import open_clip
import pytest
import torch

from mora.runs.backbone import with_policy
from mora.runs.run import copy_strictly, write_config
from mora.system.folders import whole_folder
from mora.towers import towers_of
from mora.training import load_backbone, load_run
from tests.training import fakes

SIZES = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"layers": 2, "width": 64, "head_width": 16, "patch_size": 8, "image_size": 32},
    "text_cfg": {"layers": 2, "width": 48, "heads": 4, "vocab_size": 49408, "context_length": 77},
}


@pytest.fixture
def named(tmp_path):
    """A small architecture that open_clip knows by name, and a file of its weights."""
    (tmp_path / "mora-test-ViT.json").write_text(json.dumps(SIZES))
    open_clip.add_model_config(tmp_path / "mora-test-ViT.json")
    torch.manual_seed(0)
    weights = open_clip.create_model("mora-test-ViT").state_dict()
    torch.save(weights, tmp_path / "weights.pt")
    return weights, str(tmp_path / "weights.pt")


def test_an_open_clip_name_with_a_file_of_weights(named):
    weights, path = named
    state = torch.get_rng_state()
    backbone = load_backbone("mora-test-ViT", path)
    assert torch.equal(torch.get_rng_state(), state)
    assert not backbone.model.training and backbone.image_size == (32, 32)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in backbone.model.state_dict().items())
    towers = towers_of(backbone.model)
    torch.testing.assert_close(backbone.missing_image, towers["image"].substitute(backbone.model))
    assert torch.equal(backbone.empty_text, towers["text"].substitute(backbone.model))


def test_the_official_substitutes():
    """METHOD: a white image is (1.9303, 2.0749, 2.1459) everywhere after CLIP's preprocessing."""
    transform = open_clip.image_transform(224, is_train=False)
    from mora.runs.backbone import white_image

    image = white_image(transform)
    assert image.shape == (3, 224, 224)
    for channel, value in zip(image, (1.9303, 2.0749, 2.1459), strict=True):
        torch.testing.assert_close(channel, torch.full_like(channel, value), atol=1e-4, rtol=0)


def test_the_fingerprint_is_of_names_shapes_and_bytes():
    one, two = load_backbone("tiny"), load_backbone("tiny")
    assert one.fingerprint() == two.fingerprint()
    with torch.no_grad():
        two.model.ln_final.weight[0] += 1e-6
    assert one.fingerprint() != two.fingerprint()


def test_official_token_policy():
    """A text of 75 or more word pieces ends at 75, as the published code has it; shorter ones stay."""
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    begin, end = tokenizer([""])[0, :2].tolist()
    official = with_policy(tokenizer, "official", tokenizer([""])[0])
    for words in (0, 1, 73, 74, 75, 76, 200):
        text = " ".join(["a"] * words)
        plain, tokens = tokenizer([text])[0], official([text])[0]
        assert tokens[0] == begin
        pooled = int(tokens.argmax())
        assert pooled == min(words + 1, 75)
        if words <= 74:
            assert torch.equal(tokens, plain)
        else:
            assert tokens[75] == tokens[76] == end and torch.equal(tokens[:75], plain[:75])


def test_policies_that_cannot_be():
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    with pytest.raises(ValueError, match="token_policy: got 'none', expected one of 'official', 'plain'"):
        with_policy(tokenizer, "none", tokenizer([""])[0])
    with pytest.raises(ValueError, match="token_policy: got 'official', expected 'plain'"):
        with_policy(tokenizer, "official", torch.tensor([1, 0, 0, 5]))


def test_a_run_is_read_strictly(tmp_path):
    fakes.trainer(tmp_path / "run", method="lora").fit()
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match="backbone: the weights of 'fake' are not those"):
        load_run(folder, backbone=fakes.backbone(fakes.open_clip_model(seed=9)))
    weights = folder / "best" / "method.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-4] + b"\0\0\0\1")
    with pytest.raises(ValueError, match="method.safetensors: its SHA-256 is not the one in method.json"):
        load_run(folder, backbone=fakes.backbone())
    weights.write_bytes(b"\x80\x04malicious")
    with pytest.raises(ValueError, match="method.safetensors: got a pickle, expected safetensors"):
        load_run(folder, backbone=fakes.backbone())
    weights.write_bytes(good)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format": 99}))
    with pytest.raises(ValueError, match="format 99, expected 1"):
        load_run(folder, backbone=fakes.backbone())
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_run(tmp_path / "nowhere")


def test_a_run_without_an_epoch_says_so(tmp_path):
    trainer = fakes.trainer(tmp_path / "run")
    trainer.folder.mkdir()
    write_config(trainer.folder, trainer.description)
    with pytest.raises(FileNotFoundError, match="has no finished epoch"):
        load_run(tmp_path / "run", backbone=fakes.backbone())


def test_tensors_that_do_not_fit_change_nothing(tmp_path):
    target = {"a": torch.zeros(2), "b": torch.zeros(3)}
    with pytest.raises(ValueError, match="b has shape"):
        copy_strictly(tmp_path, {"a": torch.ones(2), "b": torch.ones(4)}, target)
    assert not target["a"].any()


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with whole_folder(tmp_path / "best") as work:
        (work / "one").touch()

    def dying():
        with whole_folder(tmp_path / "best") as work:
            (work / "two").touch()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        dying()
    assert [path.name for path in tmp_path.rglob("*")] == ["best", "one"]
    with whole_folder(tmp_path / "best") as work:
        (work / "three").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["best", "three"]
