"""The verbs on models of one stream: what is supported works as on towers, what is not is refused by name."""

import copy
import pickle

import pytest
import torch
from torch import nn

import mora
from mora.streams import ModalityLinear, Routes, StreamSite
from mora.towers import towers_of
from tests.mora.models import randomise
from tests.streams.models import MODELS, inputs_of, llava, run, tokens, vilt

names = pytest.mark.parametrize("name", MODELS)
HEADS = (
    "ViltForImagesAndTextClassification",
    "ViltForQuestionAnswering",
    "ViltForMaskedLM",
    "ViltForImageAndTextRetrieval",
    "ViltForTokenClassification",
)


def hooks_of(model):
    """How many hooks the modules of a model have."""
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


@names
@torch.no_grad()
def test_the_life_of_an_adapter(name, tmp_path):
    model, (given, _) = MODELS[name]().double(), inputs_of(name)
    weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    plain, before = run(model, given), hooks_of(model)
    assert mora.patch(model, init="identity", targets=("q", "k", "v", "out")) is model
    torch.testing.assert_close(run(model, given), plain, rtol=1e-9, atol=1e-9)
    assert {*weights} <= {*model.state_dict()}, "frozen weights keep their names"
    mora.verify(model)
    mora.unpatch(model)
    assert hooks_of(model) == before
    assert list(model.state_dict()) == list(weights)
    assert all(torch.equal(weights[key], tensor) for key, tensor in model.state_dict().items())
    randomise(mora.patch(model, rank=2, targets=("q", "v")))
    adapted = run(model, given)
    assert (adapted - plain).norm() > 0.01 * plain.norm()
    with mora.disabled(model):
        assert torch.equal(run(model, given), plain)
    own = mora.adapter_state_dict(model)
    assert {"common.0.image", "common.1.text", "image.1.v.specific_b", "text.0.q.common_magnitude"} <= {*own}
    assert len({id(parameter) for _, parameter in mora.adapter_parameters(model)}) == len(own)
    mora.save_adapter(model, tmp_path)
    mora.unpatch(model)
    mora.load_adapter(model, tmp_path)
    assert torch.equal(run(model, given), adapted)
    with mora.keeping(model):
        assert torch.equal(run(model, given), adapted)
    twin = copy.deepcopy(model)
    twin = twin if name == "llava" else pickle.loads(pickle.dumps(twin))  # LLaVA's CLIP has hooks that are no module's
    assert torch.equal(run(twin, given), adapted)
    mora.unpatch(twin)
    assert torch.equal(run(twin, given), plain) and torch.equal(run(model, given), adapted)


@names
@torch.no_grad()
def test_a_merge_is_refused_or_leaves_a_weight_for_each_modality(name):
    model, (given, _) = (
        randomise(mora.patch(MODELS[name]().double(), targets=("q", "v"), last_layers=1)),
        inputs_of(name),
    )
    state, adapted = {key: value.clone() for key, value in model.state_dict().items()}, run(model, given)
    with pytest.raises(ValueError, match=r"per_modality: got False, but .*layer.*\.1\..*, .* have a W_eff for each"):
        mora.merge(model)
    with pytest.raises(ValueError, match="keep: got True with per_modality=True"):
        mora.merge(model, keep=True, per_modality=True)
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items()), "nothing was changed"
    again = copy.deepcopy(model)
    assert mora.merge(model, per_modality=True) is model
    torch.testing.assert_close(run(model, given), adapted, rtol=1e-9, atol=1e-9)
    assert not any(isinstance(module, (StreamSite, mora.MoraLinear)) for module in model.modules())
    merged = [path for path, module in model.named_modules() if isinstance(module, ModalityLinear)]
    plain = list(MODELS[name]().state_dict())
    divided = {f"{path}.{modality}.weight" for path in merged for modality in ("image", "text")}
    assert len(merged) == 2 and {*model.state_dict()} == {*plain} - {f"{path}.weight" for path in merged} | divided
    other = mora.merge(randomise(again, seed=4), per_modality=True)
    assert not torch.equal(run(other, given), adapted)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(run(other, given), adapted, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="looked for an nn.Linear at .*, found mora.streams.merged.ModalityLinear"):
        mora.patch(model)


@torch.no_grad()
def test_routes_that_agree_are_merged_into_one_weight():
    """At an identity start both modalities have the same W_eff."""
    model, (given, _) = vilt().double(), inputs_of("vilt")
    plain, keys = run(model, given), list(model.state_dict())
    mora.merge(mora.patch(model, init="identity"))
    assert list(model.state_dict()) == keys
    assert all(type(module) is nn.Linear for name, module in model.named_modules() if name.endswith(".query"))
    torch.testing.assert_close(run(model, given), plain, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_only_one_modality_is_merged_beside_the_frozen_weight():
    model, (given, _) = llava().double(), inputs_of("llava")
    randomise(mora.patch(model, adapt={"image": "mora", "text": "frozen"}))
    adapted = run(model, given)
    mora.merge(model, per_modality=True)
    torch.testing.assert_close(run(model, given), adapted, rtol=1e-9, atol=1e-9)
    divided = next(module for module in model.modules() if isinstance(module, ModalityLinear))
    assert torch.equal(divided.text.weight, llava().double().model.language_model.layers[0].self_attn.q_proj.weight)


def test_factors_are_those_of_the_modalities_of_one_block():
    """Whatever is asked for by modality, image and text of one block share its factors."""
    model = mora.patch(vilt(), layers={"image": (0, 1), "text": (1,)})
    own = mora.adapter_state_dict(model)
    assert [name for name in own if name.startswith("common.")] == ["common.0.image", "common.1.image", "common.1.text"]
    both = model.encoder.layer[1].attention.attention.query.adapted
    for modality, other in (("image", "text"), ("text", "image")):
        common, others = both[modality].factors()[:2]
        assert common is dict(mora.adapter_parameters(model))[f"common.1.{modality}"]
        assert others[0] is dict(mora.adapter_parameters(model))[f"common.1.{other}"] and len(others) == 1
    mora.verify(model)
    assert "single stream" in str(mora.summary(model))
    assert [p.path for p in mora.summary(model).projections if p.name == "text.1.q"] == [
        "encoder.layer.1.attention.attention.query"
    ]


@pytest.mark.parametrize("kind", HEADS)
def test_heads_that_hold_a_vilt(kind):
    model, (given, _) = vilt(kind, num_images=1), inputs_of("vilt")
    if kind == "ViltForMaskedLM":
        model.tie_weights()
    with torch.no_grad():
        plain = run(model, given)
        mora.patch(model, init="identity")
        torch.testing.assert_close(run(model, given), plain)
    mora.verify(model)
    assert all(p.path.startswith("vilt.") for p in mora.summary(model).projections)


@names
@torch.no_grad()
@pytest.mark.parametrize("options", [{"method": "dora"}, {"adapt": {"image": "lora", "text": "mora"}}])
def test_other_methods_adapt_a_modality_as_well(name, options):
    model = randomise(mora.patch(MODELS[name]().double(), targets=("q", "v"), **options))
    mora.verify(model)
    adapted = run(model, given := inputs_of(name)[0])
    mora.merge(model, per_modality=True)
    torch.testing.assert_close(run(model, given), adapted, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_two_images_are_two_calls_of_the_stream():
    model, (given, _) = (
        vilt("ViltForImagesAndTextClassification", num_images=2, modality_type_vocab_size=3),
        inputs_of("vilt"),
    )
    randomise(mora.patch(model))
    both = {"input_ids": given["input_ids"], "pixel_values": given["pixel_values"][:, None].repeat(1, 2, 1, 1, 1)}
    assert run(model, both).shape == (2, 2)


def test_the_inner_model_of_a_llava_is_one_as_well():
    assert {*towers_of(llava("LlavaModel"))} == {"image", "text"}
    mora.verify(mora.patch(llava("LlavaModel"), targets=("q", "k", "v", "out", "fc1", "fc2")))


def test_an_adapter_fits_its_own_kind_of_stream(tmp_path):
    mora.save_adapter(mora.patch(vilt()), tmp_path)
    with pytest.raises(ValueError, match="towers: .*'ViLT, single stream'.*'decoder, single stream'"):
        mora.load_adapter(llava(), tmp_path)
    for options, message in (({"rank": 3}, "rank"), ({"alpha": 0.5}, "alpha"), ({"targets": ("q",)}, "targets")):
        with pytest.raises(ValueError, match=message):
            mora.load_adapter(mora.patch(vilt(), **options), tmp_path)
    other = vilt()
    with torch.no_grad():
        other.encoder.layer[1].attention.attention.query.weight.mul_(1.1)
    with pytest.raises(ValueError, match="base: .* was trained on other weights"):
        mora.load_adapter(other, tmp_path)
    assert not any(isinstance(module, StreamSite) for module in other.modules())


REFUSED = {
    "another adapter": (lambda model: mora.add_adapter(model, "other"), "in a single-stream model, which takes one"),
    "a sum of adapters": (lambda model: mora.combine(model, {"default": 0.5}), "model: got a single-stream model"),
    "a batch to diagnose": (lambda model: mora.diagnose(model, {"text": tokens()}), "batch: got one for a single-str"),
    "a classifier": (lambda model: mora.MissingModalityClassifier(model, 3), "no tower embeds the image alone"),
    "a cache": (lambda model: mora.savings.Encoder(model), "no tower embeds the image alone"),
    "official files": (lambda model: mora.save_official(model, "best.pt", nn.Linear(2, 2)), "got a single-stream"),
    "a second patch": (mora.patch, "already patched"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_needs_towers_is_refused_by_name(what):
    act, message = REFUSED[what]
    model = mora.patch(llava())
    with pytest.raises(ValueError, match=message):
        act(model)
    assert "single stream" in str(mora.summary(model)) and str(mora.diagnose(model)).startswith(" ")


def test_an_error_leaves_the_model_as_it_was():
    model, before = vilt(), hooks_of(vilt())
    model.encoder.layer[1].attention.attention.value = nn.Bilinear(2, 2, 2)
    with pytest.raises(ValueError, match="looked for an nn.Linear at encoder.layer.1"):
        mora.patch(model)
    assert hooks_of(model) == before
    assert not any(isinstance(module, (StreamSite, Routes)) for module in model.modules())
