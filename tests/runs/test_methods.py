"""Every method on one harness: what it trains, that it comes back, that folding gives a plain CLIP of equal logits."""

import pytest
import torch

import mora
from mora.runs.methods import METHODS, PROMPTED, adapt, adapted_slots, fold, trained_tensors
from mora.towers import recipe_of
from mora.training import load_run
from tests.mora.models import MODELS, embed, open_clip_model
from tests.training import fakes

peft = pytest.importorskip("peft")
CONFIG = mora.MoraConfig(rank=2, last_layers=2, dropout=0.0)


def image(batch=3):
    return torch.randn(batch, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def move(parameters):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("targets", [("q", "v"), ("q", "k", "v", "out")], ids="".join)
def test_split_attention_equals_the_original_and_goes_back(family, targets):
    plain, model = MODELS[family]().double(), MODELS[family]().double()
    keys = list(model.state_dict())
    slots = adapted_slots(model, CONFIG)
    for slot in slots:
        slot.split(targets)
        assert all(isinstance(model.get_submodule(name), torch.nn.Linear) for name in slot.linear_names(targets))
    for actual, expected in zip(embed(model, image()), embed(plain, image()), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    for slot in slots:
        slot.unsplit(targets)
    assert list(model.state_dict()) == keys
    assert all(torch.equal(t, plain.state_dict()[n]) for n, t in model.state_dict().items())
    assert [type(slot.attention) for slot in slots] == [type(s.attention) for s in adapted_slots(plain, CONFIG)]


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("method", [method for method in METHODS if method not in PROMPTED])
def test_every_parameter_gets_a_gradient_and_folding_is_exact(family, method):
    model = MODELS[family]().double()
    keys, kinds = list(model.state_dict()), [type(module) for module in model.modules()]
    config = mora.MoraConfig(rank=2, last_layers=2, dropout=0.0, targets=("q", "v", "out"))
    trained = adapt(model, method, config, lora_scale=2.0)
    assert {n: t.data_ptr() for n, t in trained_tensors(model, method).items()} == {
        name: parameter.data_ptr() for name, parameter in trained.items()
    }
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in trained.values()}
    move(trained.values())
    outputs = embed(model, image())
    if method not in ("linear", "zero-shot"):
        sum(e.square().sum() for e in outputs).backward()
    # a key's bias shifts every score of a query alike: softmax does not see it
    dead = [n for n, p in trained.items() if (p.grad is None or not p.grad.abs().max() > 0) and "k_proj.bias" not in n]
    assert not dead
    model.eval()
    expected = [e.detach() for e in embed(model, image())]
    fold(model, method, config)
    assert list(model.state_dict()) == keys
    assert [type(module) for module in model.modules()] == kinds
    for actual, wanted in zip(embed(model, image()), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-6, atol=1e-6)


def test_what_each_method_trains():
    counts = {}
    for method in METHODS:
        model = open_clip_model(image_layers=5)  # unequal depths: the text tower's names end the image tower's
        trained = adapt(model, method, mora.MoraConfig(rank=2, last_layers=1, targets=("q", "out")))
        counts[method] = sum(p.numel() for p in trained.values())
        if method in ("lora", "dora"):
            assert all("resblocks.4.attn" in n if n.startswith("visual") else "resblocks.3.attn" in n for n in trained)
    widths = (64, 48)
    assert counts["linear"] == counts["zero-shot"] == 0
    assert counts["lora"] == sum(2 * 2 * 2 * width for width in widths)
    assert counts["dora"] == counts["lora"] + sum(2 * width for width in widths)
    assert counts["mora"] == counts["mora-no-gram"] == sum(2 * width + 2 * (2 * width + 4 * width) for width in widths)
    assert counts["mora-no-specific"] == sum(2 * width + 2 * width for width in widths)
    biases = [p for n, p in open_clip_model(image_layers=5).named_parameters() if n.endswith("bias")]
    assert counts["bitfit"] == sum(p.numel() for p in biases)
    clip = open_clip_model(image_layers=5)
    blocks = clip.visual.transformer.resblocks[4], clip.transformer.resblocks[3]
    assert counts["last-block"] == sum(p.numel() for block in blocks for p in block.parameters())
    assert counts["mmp"] == sum(3 * 4 * 36 * width for width in widths)  # pattern, block of the shallower tower, length
    networks = sum(4 * (2 * 112 + 112 * 7 + 7 + 7 * w + w) + 48 * 3 + 3 + 3 * w + w + 4 * (w * w + w) for w in widths)
    assert counts["dcp"] == networks + 2 * 12 * 112 + 3 * 12 * 48 + 3 * 12 * 112


@pytest.mark.parametrize("method", PROMPTED)
def test_prompts_are_not_folded(method):
    model = open_clip_model()
    trained = adapt(model, method, CONFIG)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in trained.values()}
    with pytest.raises(ValueError, match=f"merge: got method '{method}', whose prompts are no update of weights"):
        fold(model, method, CONFIG)


def test_each_modality_may_have_a_rank_of_its_own():
    model = open_clip_model()
    config = mora.MoraConfig(rank={"image": 3, "text": 5}, common_rank=2, last_layers=1)
    ranks = {name: p.shape[0] for name, p in adapt(model, "lora", config).items() if "lora_A" in name}
    assert {rank for name, rank in ranks.items() if name.startswith("visual")} == {3}
    assert {rank for name, rank in ranks.items() if name.startswith("transformer")} == {5}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_every_method_comes_back(method, tmp_path):
    trainer = fakes.trainer(tmp_path / "run", method=method, epochs=3)
    result = trainer.fit()
    run = load_run(tmp_path / "run", backbone=fakes.backbone())
    assert run.method == method and run.classes == fakes.CLASSES
    trainer.model.eval()
    rows = torch.randn(4, 3, 32, 32), run.tokenize(["a", "b", "c", "d"])
    torch.testing.assert_close(run.model(*rows), trainer.model(*rows), rtol=0, atol=0)
    assert result.parameters == sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    assert recipe_of(run.model.model).name == "open_clip"


def test_unknown_method():
    with pytest.raises(ValueError, match="method: got 'adapter', expected one of 'linear', 'lora'"):
        adapt(open_clip_model(), "adapter", CONFIG)


def test_bitfit_leaves_the_bias_of_the_contrastive_loss():
    model = open_clip_model()
    model.logit_bias = torch.nn.Parameter(torch.zeros(()))  # as SigLIP has; it never gets a gradient here
    trained = adapt(model, "bitfit", CONFIG)
    assert trained and "logit_bias" not in trained and not model.logit_bias.requires_grad
