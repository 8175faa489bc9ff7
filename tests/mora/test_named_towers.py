"""Adapters with names on timm's towers, ResNets and towers of one's own: each computes as on a model of its own."""

import copy

import pytest
import torch

import mora
from mora.census.shrink import built
from tests.mora.models import randomise
from tests.mora.test_timm import images
from tests.mora.test_your_own import Three, embed, given, towers

CONFIGS = {"films": {"rank": 2, "targets": ("q", "v")}, "food": {"rank": 1, "targets": ("k", "v")}}
ONE = {"last_layers": 1, "dropout": 0.0, "alpha": 0.1}


def open_clips(name):
    """(model, how to patch it, what it computes)."""
    model = built(name)

    def compute(model):
        return [model.encode_image(images(model))]

    return model, {}, compute


def threes():
    model, inputs = Three(), given()
    return model, {"towers": towers(model)}, lambda model: embed(model, inputs)


MODELS = {
    "timm": lambda: open_clips("ViT-B-16-SigLIP"),
    "timm, EVA": lambda: open_clips("EVA02-B-16"),
    "ResNet": lambda: open_clips("RN50"),
    "one's own": threes,
}


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_each_computes_as_it_does_alone(kind, tmp_path):
    """Added, set, used, saved, loaded, deleted, merged and unmerged, taken out bit for bit."""
    model, more, compute = MODELS[kind]()
    model.eval()
    plain, keys = [one.clone() for one in compute(model)], list(model.state_dict())
    alone = {}
    for seed, (name, config) in enumerate(CONFIGS.items()):
        own, options, _ = MODELS[kind]()
        torch.manual_seed(seed)
        alone[name] = randomise(mora.patch(own.eval(), **ONE, **config, **options), seed)
    for seed, (name, config) in enumerate(CONFIGS.items()):
        torch.manual_seed(seed)
        if seed:
            mora.add_adapter(model, name, **ONE, **config)
        else:
            mora.patch(model, name=name, **ONE, **config, **more)
        with mora.using(model, name):
            randomise(model, seed)
    want = {name: [one.clone() for one in compute(own)] for name, own in alone.items()}
    for name in ("food", "films"):
        mora.set_adapter(model, name)
        assert same(compute(model), want[name]) and not same(compute(model), plain)
        with mora.using(model, "films"):
            assert same(compute(model), want["films"])
        assert len(mora.summary(model).projections) == len(mora.summary(alone[name]).projections)
    with mora.disabled(model):
        for found, expected in zip(compute(model), plain, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    mora.save_adapters(model, tmp_path)
    mora.load_adapter(model, tmp_path / "food", name="again")
    mora.set_adapter(model, "again")
    assert same(compute(model), want["food"])
    mora.delete_adapter(model, "films")  # the first: the others are put in anew
    assert same(compute(model), want["food"])

    merged = [one.clone() for one in compute(mora.merge(copy.deepcopy(alone["food"])))]
    mora.merge(model, keep=True)
    assert same(compute(model), merged) and list(model.state_dict()) == keys
    mora.unmerge(model)
    assert same(compute(model), want["food"])
    mora.unpatch(model)
    assert same(compute(model), plain) and list(model.state_dict()) == keys


def same(found, wanted):
    return all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
