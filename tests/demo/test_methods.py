"""The demo's methods: every adapter is alive, the base stays as it was, merging is exact."""

import pytest
import torch

from mora.demo.methods import adapt
from mora.demo.settings import METHODS, Settings
from mora.towers import towers_of
from tests.mora.models import embed, open_clip_model

peft = pytest.importorskip("peft")

ADAPTED = [method for method in METHODS if method != "frozen"]


def settings(**changes):
    return Settings(**{"last_layers": 2, "rank": 2, "dropout": 0.0, **changes})


def randomise(parameters):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_peft_wraps_exactly_the_targets_and_every_parameter_gets_a_gradient(method):
    base = open_clip_model().double()
    before = [e.detach() for e in embed(base, image())]
    model, adapters = adapt(base, method, settings())
    assert len(adapters) == 2 * 2 * 2 * (2 if method == "lora" else 3)
    assert all("attn.q" in name or "attn.v" in name for name in adapters)
    assert not any(p.requires_grad for p in base.parameters()) or base is not model
    for actual, expected in zip(embed(model, image()), before, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)  # LoRA starts as the identity
    randomise(adapters.values())
    sum(e.square().sum() for e in embed(model, image())).backward()
    dead = [name for name, p in adapters.items() if p.grad is None or not p.grad.abs().max() > 0]
    assert not dead


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_merging_equals_forward(method):
    model, adapters = adapt(open_clip_model().double(), method, settings())
    randomise(adapters.values())
    expected = [e.detach() for e in embed(model, image())]
    layers = [module for module in model.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
    assert len(layers) == 8
    for layer in layers:
        layer.merge()
    for actual, wanted in zip(embed(model, image()), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ADAPTED)
def test_the_pooled_suffix_runs_every_adapter(method):
    model, adapters = adapt(open_clip_model().double(), method, settings())
    randomise(adapters.values())
    tower = towers_of(model)["image"]
    hidden = tower.prefix(model, image(), 2)
    parts = tower.suffix(model, hidden, 2)
    torch.testing.assert_close(parts, model.encode_image(image()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_adapting_leaves_the_base_as_it_was(method):
    base = open_clip_model()
    keys, weights = list(base.state_dict()), {n: t.clone() for n, t in base.state_dict().items()}
    adapt(base, method, settings())
    assert list(base.state_dict()) == keys
    assert all(torch.equal(t, weights[n]) for n, t in base.state_dict().items())
    assert all(p.requires_grad for p in base.parameters())


def test_the_same_seed_draws_the_same_adapters():
    for method in ADAPTED:
        drawn = []
        for _ in range(2):
            torch.manual_seed(5)
            drawn.append(adapt(open_clip_model(seed=0), method, settings())[1])
        # open_clip_model seeds too, so draw from the same state in both
        assert all(torch.equal(a, b) for a, b in zip(drawn[0].values(), drawn[1].values(), strict=True))


def image():
    return torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
