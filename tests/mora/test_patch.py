"""patch, unpatch, merge, disabled: on both families, exact, reversible, and refusing what cannot work."""

import copy
import pickle

import open_clip
import pytest
import torch
from torch import nn

import mora
from mora_kernels.testing import assert_parity
from tests.mora.models import (
    MODELS,
    attention_of,
    embed,
    hugging_face_model,
    images,
    open_clip_model,
    open_clip_twin,
    randomise,
    tokens,
)

TABLE = {torch.float32: 2e-5, torch.float64: 1e-10}
families = pytest.mark.parametrize("family", MODELS)
TARGETS = [("q", "v"), ("k",), ("q", "k", "v", "out"), ("out",)]


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@torch.no_grad()
def embeddings(model):
    return [embedding.clone() for embedding in embed(model)]


@families
@pytest.mark.parametrize("targets", TARGETS, ids="".join)
def test_unpatch_is_bit_exact(family, targets):
    model = MODELS[family]()
    next(model.parameters()).requires_grad_(False)
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    modules, weights = dict(model.named_modules()), snapshot(model)
    parameters = {name: id(p) for name, p in model.named_parameters()}

    assert mora.patch(model, targets=targets) is model
    randomise(model)
    embed(model)[0].sum().backward()
    assert mora.unpatch(model) is model

    assert dict(model.named_modules()) == modules
    assert {name: id(p) for name, p in model.named_parameters()} == parameters
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trainable
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@families
@pytest.mark.parametrize("targets", TARGETS, ids="".join)
def test_merge_equals_forward(family, targets):
    model = MODELS[family]()
    keys, modules = list(model.state_dict()), {n: type(m) for n, m in model.named_modules()}
    mora.patch(model, targets=targets)
    before = embeddings(randomise(model))
    assert mora.merge(model) is model
    for name, actual, expected in zip(("image", "text"), embeddings(model), before, strict=True):
        assert_parity(name, actual, expected, TABLE)
    assert list(model.state_dict()) == keys
    assert {n: type(m) for n, m in model.named_modules()} == modules
    assert not hasattr(model, "mora")


@families
def test_patched_model_computes_equation_2(family):
    """Against weights replaced by hand with W_eff: an oracle that shares nothing with patching."""
    model = randomise(mora.patch(MODELS[family](), targets=("q", "k", "v", "out"), alpha=0.05))
    plain = MODELS[family]()
    with torch.no_grad():
        for name, projection in model.mora.projections():
            modality, layer, target = name.split(".")
            weight = projection.effective_weight()
            attention = attention_of(plain, modality, int(layer))
            if target == "out" or hasattr(attention, "q_proj"):
                getattr(attention, f"{target}_proj").weight.copy_(weight)
            else:
                start = "qkv".index(target) * weight.shape[0]
                attention.in_proj_weight[start : start + weight.shape[0]] = weight
    for name, actual, expected in zip(("image", "text"), embeddings(model), embeddings(plain), strict=True):
        assert_parity(name, actual, expected, TABLE)


def test_families_agree():
    first = hugging_face_model()
    second = open_clip_twin(first)
    for model in (first, second):
        mora.patch(model, rank={"image": 3, "text": 5}, common_rank=2, targets=("q", "k", "v", "out"), dropout=0.0)
    randomise(first)
    with torch.no_grad():
        theirs = mora.adapter_state_dict(first)
        assert list(theirs) == list(mora.adapter_state_dict(second))
        for name, parameter in mora.adapter_parameters(second):
            parameter.copy_(theirs[name])
    first.train(), second.train()
    for name, one, two in zip(("image", "text"), embed(first), embed(second), strict=True):
        assert_parity(name, two, one, TABLE)
        one.square().mean().backward()
        two.square().mean().backward()
    gradients = {name: p.grad for name, p in mora.adapter_parameters(first)}
    for name, parameter in mora.adapter_parameters(second):
        assert_parity(name, parameter.grad, gradients[name], TABLE)


@families
def test_only_adapters_train_and_each_is_listed_once(family):
    model = mora.patch(MODELS[family]())
    named = list(mora.adapter_parameters(model))
    assert len({id(p) for _, p in named}) == len(named)
    assert {id(p) for _, p in named} == {id(p) for p in model.parameters() if p.requires_grad}
    names = [name for name, _ in named]
    assert names[0] == "common.0.image" and "text.3.v.specific_b" in names
    assert sum(p.numel() for _, p in named) == mora.summary(model).adapter_parameters


@families
def test_disabled_is_the_pretrained_model(family):
    model = MODELS[family]().requires_grad_(False)
    plain = embeddings(model)
    adapted = embeddings(randomise(mora.patch(model)))
    with mora.disabled(model):
        with mora.disabled(model):
            pass
        assert all(torch.equal(a, b) for a, b in zip(embeddings(model), plain, strict=True))
        with pytest.raises(RuntimeError, match="boom"), mora.disabled(model):
            raise RuntimeError("boom")
        assert all(torch.equal(a, b) for a, b in zip(embeddings(model), plain, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(embeddings(model), adapted, strict=True))
    assert not torch.equal(plain[0], adapted[0])


@families
def test_identity_start(family):
    model = MODELS[family]()
    plain = embeddings(model)
    mora.patch(model, init="identity", dropout=0.0)
    for name, actual, expected in zip(("image", "text"), embeddings(model), plain, strict=True):
        assert_parity(name, actual, expected, TABLE)
    optimizer = torch.optim.SGD([p for _, p in mora.adapter_parameters(model)], lr=0.1)
    for _ in range(2):  # like B in LoRA, S moves once its magnitude has
        sum(e.square().mean() for e in embed(model)).backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for _, p in mora.adapter_parameters(model))


@families
@pytest.mark.parametrize("variant", ["no-gram", "fixed-gram", "no-specific"])
def test_variants(family, variant):
    model = mora.patch(MODELS[family](), variant=variant, dropout=0.0)
    named = dict(mora.adapter_parameters(randomise(mora.verify(model))))
    assert any("specific" in name for name in named) == (variant != "no-specific")
    embed(model)[0].sum().backward()
    if variant != "no-specific":  # the image tower no longer reads the text factor
        assert named["common.0.text"].grad is None
        assert named["common.0.image"].grad is not None
    else:
        assert named["common.0.text"].grad.abs().max() > 0
    before = embeddings(model)
    for name, actual, expected in zip(("image", "text"), embeddings(mora.merge(model)), before, strict=True):
        assert_parity(name, actual, expected, TABLE)


@families
def test_base_checkpoints_load_both_ways(family):
    base, model = MODELS[family](), mora.patch(MODELS[family](seed=1))
    adapters = {name: tensor.clone() for name, tensor in mora.adapter_state_dict(randomise(model)).items()}
    model.load_state_dict(base.state_dict())
    assert all(torch.equal(tensor, adapters[name]) for name, tensor in mora.adapter_state_dict(model).items())
    result = MODELS[family](seed=2).load_state_dict(model.state_dict(), strict=False)
    assert not result.missing_keys
    assert len(result.unexpected_keys) == len(adapters)
    assert set(base.state_dict()) == set(model.state_dict()) - set(result.unexpected_keys)
    twin = mora.patch(MODELS[family](seed=3))
    twin.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(embeddings(twin), embeddings(model), strict=True))
    partial = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("mora.common.1")}
    with pytest.raises(RuntimeError, match=r"Missing key.*mora\.common\.1\.image"):
        twin.load_state_dict(partial)
    wrapped = nn.Sequential(model)
    wrapped.load_state_dict({f"0.{name}": tensor for name, tensor in base.state_dict().items()})


@families
@pytest.mark.parametrize(
    "copier", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_copies_are_independent(family, copier):
    model = randomise(mora.patch(MODELS[family]()))
    expected = embeddings(model)
    other = copier(model)
    assert all(torch.equal(a, b) for a, b in zip(embeddings(other), expected, strict=True))
    with torch.no_grad():
        for _, parameter in mora.adapter_parameters(other):
            parameter.zero_()
    assert all(torch.equal(a, b) for a, b in zip(embeddings(model), expected, strict=True))
    mora.unpatch(other)
    weights = MODELS[family]().state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in other.state_dict().items())
    assert mora.summary(mora.verify(model)).adapter_parameters


@families
def test_follows_dtype_and_device(family):
    model = randomise(mora.patch(MODELS[family]())).to(torch.float64)
    assert embed(model, images().double())[0].dtype == torch.float64
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        model.to(torch.bfloat16)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    assert embed(model, images().bfloat16())[0].dtype == torch.bfloat16
    mora.verify(model)
    mora.unpatch(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(p.device.type == "meta" for p in mora.patch(model.to("meta")).parameters())


def test_factors_of_a_half_precision_model_are_float32():
    model = mora.patch(open_clip_model().to(torch.bfloat16))
    assert {p.dtype for _, p in mora.adapter_parameters(model)} == {torch.float32}
    embed(model, images().bfloat16())[0].float().sum().backward()
    assert {p.grad.dtype for n, p in mora.adapter_parameters(model) if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize(("last", "layers"), [(1, (3, 5)), (2, (2, 4)), (4, (0, 2))])
def test_towers_of_unequal_depth_are_paired_from_the_top(last, layers):
    model = mora.patch(open_clip_model(4, 6), last_layers=last)
    assert next((p["image"].layer, p["text"].layer) for p in model.mora.pairs) == layers
    assert len(model.mora.pairs) == last
    mora.verify(model)


def test_first_layer():
    model = mora.patch(open_clip_model(4, 4), first_layer=1)
    assert [(p["image"].layer, p["text"].layer) for p in model.mora.pairs] == [(1, 1), (2, 2), (3, 3)]


@pytest.mark.parametrize(
    "model", [lambda: open_clip_model(4, 6), hugging_face_model], ids=["open_clip", "hugging_face"]
)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ("q", "fc3")}, "targets: got unknown target 'fc3'"),
        ({"last_layers": 9}, "last_layers: got 9, expected at most"),
        ({"first_layer": 7}, "first_layer: got 7"),
        ({"rank": 0}, "rank: got 0"),
        (
            {"rank": {"image": 4}},
            r"rank: got keys \['image'\] \(missing 'text'\), expected the towers, 'image', 'text'",
        ),
        ({"rank": {"image": 4, "text": 4, "audio": 4}}, r"rank: got keys \[.*\] \(unknown 'audio'\), expected"),
        ({"rank": 65}, "rank: got 65, expected at most"),
        ({"alpha": -1.0}, "alpha: got -1.0"),
        ({"dropout": 1.5}, "dropout: got 1.5"),
    ],
)
def test_wrong_options_leave_the_model_as_it_was(model, options, message):
    model = model()
    modules, weights = dict(model.named_modules()), snapshot(model)
    with pytest.raises(ValueError, match=message):
        mora.patch(model, **options)
    assert dict(model.named_modules()) == modules
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_unequal_depths_with_first_layer():
    with pytest.raises(ValueError, match=r"first_layer: got 2 with towers of unequal depth \(4 image, 6 text blocks\)"):
        mora.patch(open_clip_model(4, 6), first_layer=2)


@families
def test_patched_twice(family):
    model = randomise(mora.patch(MODELS[family]()))
    before = embeddings(model)
    with pytest.raises(ValueError, match="model: got a CLIP that is already patched"):
        mora.patch(model)
    assert all(torch.equal(a, b) for a, b in zip(embeddings(model), before, strict=True))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2)), "got a Sequential with 0, looked for .*Hugging Face: vision_model"),
        (nn.DataParallel(nn.Linear(2, 2)), "looked for"),
        ("ViT-B-16", "got str"),
    ],
    ids=["sequential", "wrapped", "string"],
)
def test_unknown_models_are_refused(model, message):
    with pytest.raises((ValueError, TypeError), match=message):
        mora.patch(model)


def test_towers_without_attention_are_refused():
    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config("convnext_tiny"))
    with pytest.raises(
        ValueError, match="image tower is timm's ConvNeXt, which has no attention .*adapt the text tower"
    ):
        mora.patch(model)


@pytest.mark.parametrize("function", [mora.unpatch, mora.merge, mora.verify, mora.summary, mora.adapter_state_dict])
def test_unpatched_models_are_named(function):
    with pytest.raises(ValueError, match="model: got a CLIP that is not patched"):
        function(open_clip_model())


@families
def test_merge_refuses_what_is_not_finite(family):
    model = mora.patch(MODELS[family]())
    with torch.no_grad():
        dict(mora.adapter_parameters(model))["text.3.v.common_magnitude"][0] = float("nan")
    weights = snapshot(model)
    with pytest.raises(ValueError, match=r"NaN or infinity in W_eff of text\.3\.v, expected"):
        mora.merge(model)
    assert all(torch.equal(t, weights[n]) for n, t in model.state_dict().items() if "magnitude" not in n)


def test_coca_and_custom_text_towers():
    """Other open_clip classes: a class token and a 3-D mask in CoCa's text tower, qk-norm blocks on `Attention`."""
    from open_clip.coca_model import CoCa

    vision = {"layers": 3, "width": 64, "head_width": 16, "patch_size": 8, "image_size": 32}
    text = {"layers": 3, "width": 48, "heads": 4, "vocab_size": 100, "context_length": 16}
    coca = CoCa(
        embed_dim=48,
        vision_cfg={**vision, "attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True},
        text_cfg={**text, "embed_cls": True, "output_tokens": True},
        multimodal_cfg={"layers": 2, "width": 48, "heads": 4, "context_length": 16},
    ).eval()
    plain = open_clip.CustomTextCLIP(embed_dim=32, vision_cfg=vision, text_cfg=text).eval()
    custom = open_clip.CustomTextCLIP(
        embed_dim=32, vision_cfg={**vision, "qk_norm": True}, text_cfg={**text, "qk_norm": True, "scale_heads": True}
    ).eval()
    for model in (coca, plain, custom):
        length = 15 if model is coca else 16
        with torch.no_grad():
            before = [e.clone() for e in embed(model, text=tokens()[:, :length])]
            model.requires_grad_(False)
            mora.patch(model, targets=("q", "k", "v", "out"), init="identity")
            after = embed(model, text=tokens()[:, :length])
        for name, actual, expected in zip(("image", "text"), after, before, strict=True):
            assert_parity(name, actual, expected, TABLE)
        mora.verify(model)
        mora.unpatch(model)
