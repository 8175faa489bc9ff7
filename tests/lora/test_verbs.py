"""LoRA and DoRA share sites and verbs with MoRA, on every kind of model."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

import mora
from mora.lora.linear import LoraLinear
from mora_kernels.testing import assert_parity
from tests.mora.models import MODELS, SITES, attention_of, embed, images, open_clip_model, randomise, tokens

TABLE = {torch.float32: 2e-5, torch.float64: 1e-10}
WHOLE = ("q", "k", "v", "out", "fc1", "fc2")
methods = pytest.mark.parametrize("method", ["lora", "dora"])


@methods
@pytest.mark.parametrize("family", MODELS)
def test_a_whole_life(family, method, tmp_path):
    """Start, proof, files, switch, kept values, diagnosis, merge and back, and the pretrained model bit for bit."""
    model, base = MODELS[family](), MODELS[family]()
    with torch.no_grad():
        plain = embed(model)
        mora.patch(model, method=method, rank=3, targets=WHOLE, last_layers=1)
        for one, expected in zip(embed(model), plain, strict=True):
            assert_parity("start", one, expected, TABLE)
    mora.verify(model)
    randomise(model)
    with torch.no_grad():
        adapted = embed(model)
        assert all(not torch.allclose(one, expected, rtol=1e-2) for one, expected in zip(adapted, plain, strict=True))
        with mora.keeping(model):
            for _ in range(2):
                assert all(torch.equal(a, b) for a, b in zip(embed(model), adapted, strict=True))
        with mora.disabled(model):
            for one, expected in zip(embed(model), plain, strict=True):
                assert_parity("disabled", one, expected, TABLE)
    mora.save_adapter(model, tmp_path)
    assert all(row.start_move == 0 and row.learned_move > 0 for row in mora.diagnose(model).projections)
    again = mora.load_adapter(MODELS[family](), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(embed(again), embed(model), strict=True))
    mora.merge(model, keep=True)
    for one, expected in zip(embed(model), adapted, strict=True):
        assert_parity("merged", one, expected, TABLE)
    mora.unmerge(model)
    assert all(torch.equal(a, b) for a, b in zip(embed(model), embed(again), strict=True))
    mora.unpatch(model)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in base.state_dict().items())


@methods
def test_open_clip_against_a_split_reference_in_float64(method):
    """q, k, v and out of packed attention, each its own LoRA: outputs and gradients of an attention written by hand."""
    model = open_clip_model().double()
    mora.patch(model, method=method, rank=3, lora_alpha=6, targets=("q", "k", "v", "out"), last_layers=1, dropout=0.0)
    randomise(model)
    attention = model.visual.transformer.resblocks[3].attn
    x = torch.randn(2, 5, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(2, 5, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    named = {name: p for name, p in mora.adapter_parameters(model) if name.startswith("image")}
    found, _ = attention(x, x, x, need_weights=False)
    gradients = torch.autograd.grad((found * weight).sum(), [*named.values()])

    packed = dict(zip("qkv", attention.in_proj_weight.chunk(3), strict=True))
    frozen = {**packed, "out": attention.out_proj.weight}
    biases = dict(zip(("q", "k", "v"), attention.in_proj_bias.chunk(3), strict=True)) | {"out": attention.out_proj.bias}

    def project(target, rows):
        a, b = named[f"image.3.{target}.lora_a"], named[f"image.3.{target}.lora_b"]
        total = frozen[target] + 2.0 * (b @ a)
        if method == "dora":
            total = total * (named[f"image.3.{target}.magnitude"] / total.norm(dim=1).detach())[:, None]
        return rows @ total.T + biases[target]

    q, k, v = (project(t, x).unflatten(-1, (4, 16)).transpose(1, 2) for t in "qkv")
    attended = (q @ k.mT / math.sqrt(16)).softmax(-1) @ v
    expected = project("out", attended.transpose(1, 2).flatten(-2))
    oracle = torch.autograd.grad((expected * weight).sum(), [*named.values()])
    assert_parity("attention", found, expected, TABLE)
    for name, one, other in zip(named, gradients, oracle, strict=True):
        assert other.any(), name
        assert_parity(name, one, other, TABLE)
    before = [one.detach() for one in embed(model, images().double())]
    for one, expected in zip(embed(mora.merge(model), images().double()), before, strict=True):
        assert (one - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("family", SITES)
def test_a_method_for_each_tower(family, tmp_path):
    """MoRA in one tower, LoRA in the other; both alone are what they are together."""
    model = SITES[family]()
    mora.patch(model, adapt={"image": "mora", "text": "lora"}, rank=2, alpha={"image": 0.05}, lora_alpha={"text": 4})
    mora.verify(randomise(model))
    names = [name for name, _ in mora.adapter_parameters(model)]
    assert "common.0.image" in names
    assert "text.2.q.lora_a" in names
    assert not [name for name in names if name.startswith("common") and "text" in name]
    assert str(mora.summary(model)).startswith("MoRA and LoRA on ")
    with torch.no_grad():
        adapted = embed(model)
    again = mora.load_adapter(SITES[family](), mora.save_adapter(model, tmp_path))
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(embed(again), adapted, strict=True))
    for tower, mode, number in (("image", "mora", 0), ("text", "lora", 1)):
        alone, other = SITES[family](), {"image": "text", "text": "image"}[tower]
        strength = {"alpha": 0.05} if mode == "mora" else {"lora_alpha": 4}
        mora.patch(alone, adapt={tower: mode, other: "frozen"}, rank=2, **strength)
        own, source = dict(mora.adapter_parameters(alone)), mora.adapter_state_dict(model)
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(source[name])
            assert torch.equal(embed(alone)[number], adapted[number])
    present = torch.tensor([True, False, True]), torch.tensor([True, True, False])
    saving, nothing = (mora.MissingModalityClassifier(model, 3, savings=s) for s in (None, mora.Savings.none()))
    nothing.head = saving.head
    for training in (True, False):
        logits = []
        for one in (saving, nothing):
            torch.manual_seed(0)
            logits.append(one.train(training)(images(), tokens(), *present))
        if not training:  # masks are drawn for other rows where something is saved
            assert_parity("logits", *logits, TABLE)


@pytest.mark.parametrize("family", SITES)
def test_adapters_of_several_methods_on_one_model(family):
    """Named adapters: MoRA, LoRA and DoRA take turns, rows of one batch are mixed, and sums are merged."""
    model = SITES[family]()
    mora.patch(model, name="mora", rank=2)
    mora.add_adapter(model, "lora", method="lora", rank=3, targets=("q", "k", "out"), last_layers=3)
    mora.add_adapter(model, "dora", method="dora", rank=2, lora_alpha=4)
    for name in ("mora", "lora", "dora"):
        mora.set_adapter(model, name)
        mora.verify(model)
        randomise(model)
    with torch.no_grad():
        apart = {}
        for name in ("mora", "lora", "dora"):
            with mora.using(model, name):
                apart[name] = embed(model)[0]
        with mora.using(model, ["lora", "dora", "mora"]):
            mixed = embed(model)[0]
        for row, name in enumerate(("lora", "dora", "mora")):
            assert_parity(name, mixed[row], apart[name][row], TABLE)
        with mora.keeping(model, adapters=2):
            for name in ("lora", "dora", "mora", "lora"):
                with mora.using(model, name):
                    assert_parity(name, embed(model)[0], apart[name], TABLE)
        projections = dict(model.mora.every()["lora"].projections())
        one = projections["image.3.q"]
        total = one.weight + 0.5 * (one.effective_weight() - one.weight)
        mora.delete_adapter(mora.set_adapter(model, "lora"), "mora")
        mora.combine(model, {"lora": 0.5})
        weight = attention_of(model, "image", 3)
        weight = weight.in_proj_weight[:64] if family == "open_clip" else weight.q_proj.weight
        assert_parity("sum", weight, total, TABLE)


@methods
def test_the_projection_alone(method):
    """A module of its own: its formula, its dropout on the update alone, compile, trace, meta and copies."""
    linear = torch.nn.Linear(6, 4).requires_grad_(False)
    layer = LoraLinear(linear, rank=2, scale=0.5, dora=method == "dora", dropout=0.5)
    torch.nn.init.normal_(layer.lora_b)
    x = torch.randn(3, 6)
    with torch.no_grad():
        assert_parity("eval", layer.eval()(x), F.linear(x, layer.effective_weight(), linear.bias), TABLE)
    assert_parity("with gradients", layer(x), F.linear(x, layer.effective_weight(), linear.bias), TABLE)
    assert_parity("traced", torch.jit.trace(layer, x)(x), layer(x), TABLE)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    torch.nn.init.zeros_(layer.lora_b)
    assert_parity("no update", layer.train()(x), linear(x), TABLE) if method == "lora" else None
    assert f"{method}, rank=2, scale=0.5" in repr(layer)
    empty = LoraLinear(torch.nn.Linear(6, 4, device="meta"), rank=2, scale=0.5, dora=method == "dora")
    empty.to_empty(device="cpu")
    with torch.no_grad():
        empty.weight.copy_(linear.weight)
        empty.bias.copy_(linear.bias)
    assert_parity("made on meta", empty.eval()(x), linear(x), TABLE)
    assert empty.lora_a.any()


def test_a_row_of_zeros_has_no_direction():
    """DoRA on a zero row, where PEFT gives NaN: finite, and the frozen product at the start."""
    linear = torch.nn.Linear(6, 4).requires_grad_(False)
    linear.weight[1] = 0
    layer = LoraLinear(linear, rank=2, scale=1.0, dora=True)
    x = torch.randn(3, 6)
    assert_parity("start", layer(x), linear(x), TABLE)
    layer(x).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())
    assert_parity("merged", layer.effective_weight(), linear.weight, TABLE)


def test_dora_follows_weights_that_are_loaded_under_it():
    model, other = (open_clip_model(2, 2, seed) for seed in (0, 1))
    mora.patch(model, method="dora")
    model.load_state_dict(other.state_dict())
    with torch.no_grad():
        for one, expected in zip(embed(model.eval()), embed(other.eval()), strict=True):
            assert_parity("embedding", one, expected, TABLE)
    randomise(model)
    with pytest.warns(UserWarning, match="other base weights were loaded"):
        model.load_state_dict({name: 2 * tensor for name, tensor in other.state_dict().items()})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "ia3"}, "^method: got 'ia3', expected one of 'mora', 'lora', 'dora'"),
        ({"method": "lora", "alpha": 16}, "^alpha: got 16 with method 'lora', whose scale is lora_alpha / rank"),
        ({"method": "lora", "variant": "no-gram"}, "^variant: got 'no-gram' with method 'lora'"),
        ({"method": "dora", "backend": "triton"}, "^backend: got 'triton' for LoRA or DoRA"),
        ({"lora_alpha": 16}, "^lora_alpha: got 16.0 where no tower has method 'lora'"),
        ({"method": "lora", "lora_alpha": 0}, "^lora_alpha: got 0, expected a positive number"),
        ({"method": "lora", "use_rslora": 1}, "^use_rslora: got 1, expected True or False"),
        ({"method": "lora", "rank_pattern": {"qkv": 4}}, "^rank_pattern: got .*expected values by target"),
        ({"method": "lora", "rank_pattern": {"image.3.q": 0}}, r"^rank_pattern\['image.3.q'\]: got 0"),
    ],
)
def test_fields_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        mora.MoraConfig(**fields)


def test_a_configuration_survives_json():
    config = mora.MoraConfig(method="lora", rank={"image": {3: 4}, "text": 8}, rank_pattern={"q": 2}, lora_alpha=16)
    assert mora.MoraConfig.from_dict(config.to_dict()) == config
    assert (config.rank_of("image", 3, "q"), config.rank_of("image", 3, "v")) == (2, 4)
    assert (config.scale_of("image", 3, "q"), config.scale_of("text", 0, "v")) == (8.0, 2.0)
    assert not {"method", "lora_alpha"} & {*mora.MoraConfig().to_dict()}
