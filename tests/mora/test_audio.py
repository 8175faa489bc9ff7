"""Towers of audio: CLAP's with a classifier, and the tiny CLIP's third, adapted, cut, missing."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("open_clip")
pytest.importorskip("transformers")

import mora
from mora.census.classes import PAIRS
from mora.data.audio import LogMel
from mora.runs.backbone import load_backbone
from mora.tiny import audio
from mora.towers import towers_of
from mora.towers.cutting import CutTower


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "audio.safetensors"
    audio.save(audio.build(), path)
    return path


def trained(model, give, classes=4, steps=6, rate=0.02):
    """Losses of a few steps in which audio is there for some rows, text for others."""
    generator, towers = torch.Generator().manual_seed(0), towers_of(model)
    inputs = {name: towers[name].random(model, 6, generator) for name in give}
    has = torch.tensor([True, True, False, True, False, True])
    present = {name: has if place == 0 else ~has | (torch.arange(6) > 3) for place, name in enumerate(give)}
    labels = torch.arange(6) % classes
    mora.patch(model, rank=2, last_layers=1, alpha=1.0)
    mora.verify(model)
    classifier = mora.MissingModalityClassifier(model, classes).train()
    parameters = [p for p in classifier.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.Adam(parameters, lr=rate), []
    for _ in range(steps):
        loss = F.cross_entropy(classifier(inputs=inputs, present=present), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, classifier, inputs, present


@pytest.mark.parametrize("name", ["ClapModel", "ClapModel with fusion"])
def test_clap_classifies_recordings_and_texts_of_which_some_are_missing(name):
    torch.manual_seed(0)
    model = PAIRS[name]().eval()
    losses, classifier, inputs, present = trained(model, ("audio", "text"), steps=40, rate=0.05)
    assert losses[-1] < 0.7 * losses[0]
    classifier.eval()
    with torch.no_grad():
        got = classifier(inputs=inputs, present=present)
        silent = inputs["audio"].clone()
        silent[~present["audio"]] = classifier.missing("audio")
        filled = classifier(inputs={**inputs, "audio": silent}, present={"text": present["text"]})
    assert (got - filled).abs().max() < 1e-4


def test_the_third_tower_of_the_tiny_clip_is_adapted_with_the_others(weights):
    model = load_backbone("tiny-audio", str(weights)).model
    losses, classifier, _, _ = trained(model, ("audio", "image", "text"))
    assert losses[-1] < 0.7 * losses[0] and tuple(classifier.towers) == ("image", "text", "audio")
    assert classifier.head.weight.shape == (4, 3 * 128)
    moved = [name for name, p in mora.adapter_parameters(model) if "audio" in name and p.grad is not None]
    assert moved


def test_the_audio_tower_can_be_cut_anywhere(weights):
    model = load_backbone("tiny-audio", str(weights)).model
    tower = towers_of(model)["audio"]
    assert isinstance(tower, CutTower) and tower.needs_all_tokens(model) == "it pools every token"
    inputs = tower.random(model, 3, torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = tower.encode(model, inputs)
        for first in range(audio.BLOCKS + 1):
            assert (tower.suffix(model, tower.prefix(model, inputs, first), first) - whole).abs().max() < 1e-5
    assert tuple(whole.shape) == (3, tower.width(model)) == (3, 128)


def test_silence_is_what_the_features_make_of_it(weights):
    backbone = load_backbone("tiny-audio", str(weights))
    silent = towers_of(backbone.model)["audio"].substitute(backbone.model)
    features = backbone.others["audio"]
    assert isinstance(features, LogMel) and features.shape == (1, audio.FRAMES, audio.BANDS) == tuple(silent.shape)
    assert (features.silence() - silent).abs().max() < 1e-6
    assert torch.equal(backbone.missing["audio"], features.silence())


def test_weights_are_kept_in_half_and_those_of_others_refused(weights, tmp_path):
    tower = audio.build()
    audio.save(tower, tmp_path / "own.safetensors")
    model, _, _ = audio.load(tmp_path / "own.safetensors")
    for name, weight in tower.state_dict().items():
        assert torch.equal(model.audio.state_dict()[name], weight.half().float()), name
    tower.proj = torch.nn.Parameter(torch.zeros(128, 64))
    audio.save(tower, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"got proj of shape \(128, 64\), expected \(128, 128\)"):
        audio.load(tmp_path / "other.safetensors")


def test_without_weights_it_says_what_trains_them(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"tiny-audio\.safetensors for backbone 'tiny-audio'.*mora demo --audio"):
        load_backbone("tiny-audio")
