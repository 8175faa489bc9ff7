"""A tower cut in two gives what the whole tower gives: outputs and every gradient, whatever the model."""

import pytest
import torch

import mora
from mora.runs.methods import adapt
from mora.towers import towers_of
from tests.mora.models import MODELS, images, open_clip_model, short_tokens, tokens

clips = pytest.mark.parametrize("clip", MODELS)
modalities = pytest.mark.parametrize("modality", ["image", "text"])


ENDS = (3, 9, 15)


def inputs_of(modality):
    return images() if modality == "image" else short_tokens(ENDS)


def prepared(clip, patched):
    model = MODELS[clip]().requires_grad_(False)
    if patched:
        mora.patch(model, last_layers=2, dropout=0.0, alpha=0.05, targets=("q", "v"))
        torch.manual_seed(1)
        with torch.no_grad():
            for _, parameter in mora.adapter_parameters(model):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model, towers_of(model)


def gradients(model, embedding):
    weights = torch.linspace(-1, 1, embedding.numel()).view_as(embedding)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad((embedding * weights).sum(), list(named.values()), allow_unused=True)
    return dict(zip(named, found, strict=True))


@clips
@modalities
@pytest.mark.parametrize("patched", [False, True], ids=["plain", "patched"])
@pytest.mark.parametrize("pooled_only", [False, True], ids=["whole", "pooled"])
def test_suffix_of_prefix_is_the_tower(clip, modality, patched, pooled_only):
    model, towers = prepared(clip, patched)
    tower = towers[modality]
    inputs = inputs_of(modality)
    if pooled_only:  # other products of other shapes: equal up to rounding, so look where rounding is small
        model.double()
        inputs = inputs.double() if modality == "image" else inputs
    whole = tower.encode(model, inputs)
    hidden = tower.prefix(model, inputs, 2)
    assert not hidden.requires_grad
    text = inputs if modality == "text" else None
    parts = tower.suffix(model, hidden, 2, tokens=text, pooled_only=pooled_only)
    if pooled_only:
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    else:
        assert torch.equal(parts, whole)
    if not patched:
        return
    expected = gradients(model, whole)
    for name, actual in gradients(model, parts).items():
        if expected[name] is None:
            assert actual is None, name
            continue
        error = (actual - expected[name]).norm() / expected[name].norm().clamp(min=1e-12)
        assert error <= (1e-11 if pooled_only else 0.0), f"{name}: {error:.1e}"
    assert any(g is not None and g.abs().max() > 0 for g in expected.values())


@clips
def test_texts_may_be_trimmed_to_the_longest(clip):
    model, towers = prepared(clip, patched=True)
    tower = towers["text"]
    if tower.needs_full_inputs(model):
        assert tower.needs_full_inputs(model) == "attention is not causal: every token reads the padding"
        return
    text = short_tokens(ENDS)[:2]
    whole = tower.encode(model, text)
    hidden = tower.prefix(model, text, 2)[:, :10]
    for pooled_only in (False, True):
        parts = tower.suffix(model, hidden, 2, tokens=text[:, :10], pooled_only=pooled_only)
        torch.testing.assert_close(parts, whole, rtol=2e-6, atol=2e-6)


@clips
@modalities
def test_dropout_acts_in_the_suffix_and_not_in_the_prefix(clip, modality):
    model = mora.patch(MODELS[clip](), dropout=0.5)
    tower = towers_of(model)[modality]
    inputs = inputs_of(modality)
    reference = tower.prefix(model, inputs, 2)
    model.train()
    modes = [module.training for module in model.modules()]
    hidden = tower.prefix(model, inputs, 2)
    assert torch.equal(hidden, reference)
    assert [module.training for module in model.modules()] == modes
    text = inputs if modality == "text" else None
    one, other = (tower.suffix(model, hidden, 2, tokens=text) for _ in range(2))
    assert one.isfinite().all()
    assert not torch.equal(one, other)


@clips
def test_wrong_arguments_are_named(clip):
    model, towers = prepared(clip, patched=False)
    text = short_tokens(ENDS)
    tower = towers["text"]
    for call in (lambda one: one.prefix("audio", text), lambda one: one.plan("audio")):
        with pytest.raises(ValueError, match="modality: got 'audio', expected one of 'image', 'text'"):
            call(mora.MissingModalityClassifier(model, 3))
    with pytest.raises(ValueError, match="first: got 9, expected a block index from 0 to"):
        tower.prefix(model, text, 9)
    hidden = tower.prefix(model, text, 2)
    if tower.frame(model) is not None:
        with pytest.raises(ValueError, match="text: got None, expected the token ids"):
            tower.suffix(model, hidden, 2)
    with pytest.raises(ValueError, match=r"text: got shape \(3, 4\), expected \(3, 16\)"):
        tower.suffix(model, hidden, 2, tokens=text[:, :4])


def test_every_cut_gives_the_same():
    for make in (lambda: open_clip_model(3, 4), *MODELS.values()):
        model = make().requires_grad_(False)
        for modality, tower in towers_of(model).items():
            inputs = images() if modality == "image" else tokens()
            text = None if modality == "image" else inputs
            whole = tower.encode(model, inputs)
            for first in range(len(tower.blocks(model))):
                hidden = tower.prefix(model, inputs, first)
                parts = tower.suffix(model, hidden, first, tokens=text, pooled_only=False)
                assert torch.equal(parts, whole), (modality, first)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_the_pooled_suffix_runs_the_adapters_of_peft(method):
    model = open_clip_model().double()
    adapters = adapt(model, method, mora.MoraConfig(rank=2, last_layers=2, dropout=0.0), 2.0)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in adapters.values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    tower, image = towers_of(model)["image"], images().double()
    parts = tower.suffix(model, tower.prefix(model, image, 2), 2)
    torch.testing.assert_close(parts, model.encode_image(image), rtol=1e-10, atol=1e-10)
