"""PEFT's verbs on its LoRA and ours on MoRA, side by side on a Hugging Face CLIP, as docs/adapters.md tells them."""

import copy

import pytest
import torch

import mora
from tests.mora.models import hugging_face_model, images, randomise, tokens

peft = pytest.importorskip("peft")
TARGETS = {"films": ("q", "v"), "food": ("k", "out")}
RANKS = {"films": 2, "food": 3}
PIXELS, TEXTS = images(), tokens()


def theirs():
    """A CLIP with two LoRAs whose B is not zero."""
    torch.manual_seed(1)
    model = None
    for name, targets in TARGETS.items():
        config = peft.LoraConfig(r=RANKS[name], target_modules=[f"{target}_proj" for target in targets])
        if model is None:
            model = peft.get_peft_model(hugging_face_model(), config, adapter_name=name)
        else:
            before = embedded(model)
            model.add_adapter(name, config)
            assert torch.equal(embedded(model), before), "the new one is not active"
            assert model.active_adapter == "films"
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.1)
    return model.eval()


def ours():
    """A CLIP with two MoRAs away from their starts."""
    model = mora.patch(hugging_face_model(), name="films", rank=2, targets=TARGETS["films"], alpha=0.1, dropout=0.0)
    before = embedded(model)
    mora.add_adapter(model, "food", rank=3, targets=TARGETS["food"], alpha=0.1, dropout=0.0)
    assert torch.equal(embedded(model), before), "the new one is not active"
    assert mora.active_adapter(model) == "films"
    for seed, name in enumerate(TARGETS):
        with mora.using(model, name):
            randomise(model, seed)
    return model.eval()


@torch.no_grad()
def embedded(model, **more):
    found = model(pixel_values=PIXELS, input_ids=TEXTS, **more)
    return torch.cat([found.image_embeds, found.text_embeds], dim=1)


def weights(model):
    """Frozen weights of the projections by their names in a plain CLIP."""
    found = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if name.endswith("_proj") and weight is not None and weight.dim() == 2:
            found[name.removeprefix("base_model.model.")] = weight.detach().clone()
    return found


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_set_trains_and_computes_with_one_alone():
    lora, model = theirs(), ours()
    for name in ("food", "films"):
        lora.set_adapter(name)
        mora.set_adapter(model, name)
        assert trainable(lora) and all(f".{name}." in key for key in trainable(lora))
        own = {id(parameter) for _, parameter in mora.adapter_parameters(model, name)}
        assert {id(p) for p in model.parameters() if p.requires_grad} == own
    lora.base_model.set_adapter(["films", "food"])  # theirs may be active together: the updates add up
    both = embedded(lora)
    for name in TARGETS:
        lora.set_adapter(name)
        assert not torch.allclose(embedded(lora), both, atol=1e-4)
    with pytest.raises(ValueError, match="^name: got"):
        mora.set_adapter(model, ["films", "food"])


def test_disabled_is_the_pretrained_model():
    lora, model, plain = theirs(), ours(), embedded(hugging_face_model().eval())
    with lora.disable_adapter():
        torch.testing.assert_close(embedded(lora), plain)
    with mora.disabled(model):
        torch.testing.assert_close(embedded(model), plain)
    assert not torch.allclose(embedded(lora), plain, atol=1e-4)
    assert not torch.allclose(embedded(model), plain, atol=1e-4)


def test_delete():
    """Another is taken out of both; the active one leaves its place to the next in PEFT, and is refused here."""
    lora, model = theirs(), ours()
    before = embedded(lora), embedded(model)
    lora.delete_adapter("food")
    mora.delete_adapter(model, "food")
    assert torch.equal(embedded(lora), before[0])
    assert torch.equal(embedded(model), before[1])
    lora, model = theirs(), ours()
    lora.delete_adapter("films")
    assert lora.active_adapter == "food" or "food" in lora.base_model.active_adapters
    with pytest.raises(ValueError, match="^name: got 'films', which is active"):
        mora.delete_adapter(model, "films")


def test_weighted_sums_are_sums_of_updates():
    """LoRA's sum is another adapter (of both ranks), ours is merged weights: both are W + sum w_i (W_i - W)."""
    shares = {"films": 0.7, "food": 0.3}
    plain, found = weights(hugging_face_model()), {}
    for name in shares:
        lora, model = theirs(), ours()
        lora.set_adapter(name)
        mora.set_adapter(model, name)
        found[name] = weights(lora.merge_and_unload()), weights(mora.merge(model))
    lora = theirs()
    with torch.no_grad():  # PEFT's sum wants the same modules in all of them
        config = peft.LoraConfig(r=3, target_modules=["q_proj", "v_proj"])
        lora.add_adapter("more", config)
        for key, parameter in lora.named_parameters():
            if "lora_B.more" in key:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(4))
    single = {}
    for name in ("films", "more"):
        one = copy.deepcopy(lora)
        one.set_adapter(name)
        single[name] = weights(one.merge_and_unload())
    lora.add_weighted_adapter(["films", "more"], [0.7, 0.3], "mix", combination_type="cat")
    lora.set_adapter("mix")
    for name, weight in weights(lora.merge_and_unload()).items():
        want = plain[name] + 0.7 * (single["films"][name] - plain[name]) + 0.3 * (single["more"][name] - plain[name])
        torch.testing.assert_close(weight, want, rtol=1e-4, atol=1e-6)
    for name, weight in weights(mora.combine(ours(), shares)).items():
        want = plain[name] + sum(share * (found[one][1][name] - plain[name]) for one, share in shares.items())
        torch.testing.assert_close(weight, want, rtol=1e-4, atol=1e-6)


def test_merging_and_the_way_back():
    """Ours returns the original bits; theirs subtracts what was added, which rounds."""
    plain = weights(hugging_face_model())
    model = mora.merge(ours(), keep=True)
    mora.unmerge(model)
    inner = dict(model.named_modules())
    for name, weight in plain.items():
        assert torch.equal(inner[name].weight, weight)
    lora = theirs()
    lora.merge_adapter()
    lora.unmerge_adapter()
    back = {
        name.replace(".base_layer", ""): p for name, p in lora.base_model.model.named_parameters() if "lora" not in name
    }
    off = [name for name, weight in plain.items() if not torch.equal(back[f"{name}.weight"], weight)]
    assert off, "theirs is within rounding, and not exact"
    assert all(torch.allclose(back[f"{name}.weight"], weight, atol=1e-5) for name, weight in plain.items())


def test_a_batch_of_many():
    lora, model, names = theirs(), ours(), ["films", "food", "films"]
    found = embedded(lora, adapter_names=names), None
    with mora.using(model, names):
        found = found[0], embedded(model)
    for row, name in enumerate(names):
        lora.set_adapter(name)
        torch.testing.assert_close(found[0][row], embedded(lora)[row], rtol=1e-4, atol=1e-5)
        with mora.using(model, name):
            torch.testing.assert_close(found[1][row], embedded(model)[row], rtol=1e-4, atol=1e-5)
