"""Weights that come after `patch`: an untouched adapter starts from them, a trained one says so, no memory is raw."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call

import mora
from mora_kernels.testing import assert_parity
from tests.mora.models import MODELS, SITES, embed, images, randomise, tokens

families = pytest.mark.parametrize("family", MODELS)
TABLE = {torch.float32: 2e-5}
MAGNITUDES = ("common_magnitude", "specific_magnitude")


def magnitudes(model):
    return {name: p.detach().clone() for name, p in mora.adapter_parameters(model) if name.endswith("magnitude")}


def raw(model, base):
    """As checkpoint readers of other formats do it."""
    with torch.no_grad():
        targets = dict(model.named_parameters())
        for name, tensor in base.state_dict().items():
            if name in targets:
                targets[name].data.copy_(tensor)


LOADS = {
    "load_state_dict": lambda model, base: model.load_state_dict(base.state_dict()),
    "assign": lambda model, base: model.load_state_dict(copy.deepcopy(base.state_dict()), assign=True),
    "not strict": lambda model, base: model.load_state_dict(base.state_dict(), strict=False),
    "inside": lambda model, base: nn.ModuleDict({"clip": model}).load_state_dict(
        {f"clip.{name}": tensor for name, tensor in base.state_dict().items()}
    ),
    "tower by tower": lambda model, base: [
        getattr(model, name).load_state_dict(child.state_dict(), strict=False)
        for name, child in base.named_children()
        if list(child.state_dict())
    ],
}


@families
@pytest.mark.parametrize("init", ["official", "identity"])
@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_an_untouched_adapter_follows_weights_that_are_loaded(family, load, init):
    base = MODELS[family](seed=1)
    expected = magnitudes(mora.patch(copy.deepcopy(base), init=init))
    model = mora.patch(MODELS[family](), init=init)
    load(model, base)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in magnitudes(model).items())
    assert all(p.requires_grad for _, p in mora.adapter_parameters(model))
    if init == "identity" and load is not LOADS["tower by tower"]:  # open_clip keeps text embeddings on the root
        with torch.no_grad():
            for name, one, other in zip(("image", "text"), embed(model), embed(base), strict=True):
                assert_parity(name, one, other, TABLE)


def test_open_clip_load_checkpoint_counts(tmp_path):
    import open_clip

    base = MODELS["open_clip"](seed=1)
    torch.save(base.state_dict(), tmp_path / "weights.pt")
    model = mora.patch(MODELS["open_clip"](), init="identity")
    open_clip.load_checkpoint(model, str(tmp_path / "weights.pt"))
    expected = magnitudes(mora.patch(base, init="identity"))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in magnitudes(model).items())


@families
def test_weights_that_no_loader_saw_are_noticed_at_the_first_training_step(family):
    base = MODELS[family](seed=1)
    model = mora.patch(MODELS[family](), init="identity")
    raw(model, base)
    classifier = mora.MissingModalityClassifier(model, 3).train()
    classifier(images(), tokens())
    expected = magnitudes(mora.patch(base, init="identity"))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in magnitudes(model).items())


@families
def test_rounding_is_no_training(family):
    base = MODELS[family](seed=1)
    model = mora.patch(MODELS[family]()).bfloat16().half().float()
    model.load_state_dict(base.state_dict())
    expected = magnitudes(mora.patch(base))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in magnitudes(model).items())


@families
def test_a_trained_adapter_stays_and_says_so(family):
    model = randomise(mora.patch(MODELS[family]()))
    before = {name: tensor.clone() for name, tensor in mora.adapter_state_dict(model).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_state_dict(MODELS[family]().state_dict())  # the same weights
        model.load_state_dict(copy.deepcopy(model).state_dict())
        model.load_state_dict(randomise(mora.patch(MODELS[family](seed=2))).state_dict())  # adapters with their weights
    model.load_state_dict(before | MODELS[family]().state_dict(), strict=False)
    with pytest.warns(UserWarning, match="other base weights were loaded under adapters trained on those before"):
        model.load_state_dict(MODELS[family](seed=1).state_dict())


@families
@pytest.mark.parametrize("init", ["official", "identity"])
def test_a_model_patched_on_the_meta_device_gets_its_start(family, init):
    base = MODELS[family](seed=1)
    expected = mora.patch(copy.deepcopy(base), init=init)
    for assign in (False, True):
        model = mora.patch(MODELS[family]().to("meta"), init=init)
        if not assign:
            model.to_empty(device="cpu")
            with torch.no_grad():
                for parameter in model.parameters():
                    if not parameter.requires_grad:
                        parameter.fill_(float("nan"))
        model.load_state_dict(base.state_dict(), assign=assign)
        for name, buffer in base.named_buffers():
            model.get_submodule(name.rpartition(".")[0])._buffers[name.rpartition(".")[2]] = buffer.clone()
        found = dict(mora.adapter_parameters(model))
        for name, parameter in mora.adapter_parameters(expected):
            assert found[name].device.type == "cpu" and found[name].requires_grad
            if name.endswith(MAGNITUDES):
                assert torch.equal(found[name], parameter), name
            elif name.endswith("specific_b"):
                assert not found[name].any()
            else:
                assert 0.5 < found[name].std() / parameter.std() < 2
        mora.verify(model)


@families
def test_weights_written_by_hand_after_to_empty(family):
    base = MODELS[family](seed=1)
    model = mora.patch(MODELS[family]().to("meta")).to_empty(device="cpu")
    raw(model, base)
    for name, buffer in base.named_buffers():
        model.get_submodule(name.rpartition(".")[0])._buffers[name.rpartition(".")[2]] = buffer.clone()
    embed(model)
    expected = magnitudes(mora.patch(base))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in magnitudes(model).items())


@families
def test_an_adapter_that_lost_its_weights_is_refused(family):
    model = mora.patch(MODELS[family]())
    model.mora.to("meta")
    with pytest.raises(RuntimeError, match="not both in memory"):
        embed(model)


class Towers(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self):
        return sum(embedding.square().mean() for embedding in embed(self.model))


@families
def test_functional_call_takes_common_factors(family):
    towers = Towers(randomise(mora.patch(MODELS[family](), dropout=0.0)))
    values = {name: p.detach() * (1.3 if p.requires_grad else 1) for name, p in towers.named_parameters()}
    actual = functional_call(towers, values, ())
    with torch.no_grad():
        for name, parameter in towers.named_parameters():
            parameter.copy_(values[name])
    assert_parity("loss", actual.detach(), towers().detach(), TABLE)


@families
def test_functional_gradients_need_the_reference_and_say_so(family):
    def gradients(towers):
        own = {name: p.detach() for name, p in towers.named_parameters() if p.requires_grad}
        rest = {name: p.detach() for name, p in towers.named_parameters() if not p.requires_grad}
        return torch.func.grad(lambda tensors: functional_call(towers, {**rest, **tensors}, ()))(own)

    towers = Towers(randomise(mora.patch(MODELS[family](), dropout=0.0, backend="reference")))
    found = gradients(towers)
    towers().backward()
    for name, parameter in towers.named_parameters():
        if parameter.requires_grad:
            assert_parity(name, found[name], parameter.grad, TABLE)
    with pytest.raises(RuntimeError, match=r"torch\.func transforms .* backend='reference'"):
        gradients(Towers(mora.patch(MODELS[family](), dropout=0.0)))


@pytest.mark.parametrize("family", SITES)
@pytest.mark.parametrize("targets", [("q", "v"), ("out",)], ids="".join)
def test_torchscript_is_refused_with_the_way_out(family, targets, tmp_path):
    model = mora.patch(MODELS[family](), targets=targets)
    tower = model.visual if family == "open_clip" else model.vision_model
    with pytest.raises(RuntimeError, match=r"torch\.jit\.script cannot hold adapters; expected a merged model"):
        torch.jit.script(tower)
    with torch.no_grad(), pytest.raises(RuntimeError, match="record W_eff as a constant; expected a merged model"):
        torch.jit.trace(tower, images(), strict=False)
    with pytest.raises(RuntimeError, match="record W_eff as a constant; expected a merged model"):
        torch.onnx.export(tower, (images(),), tmp_path / "x.onnx", dynamo=False)
    exported = torch.export.export(tower, (images(),)).module()(images())
    expected = tower(images())
    if family == "hugging_face":
        exported, expected = exported.pooler_output, expected.pooler_output
    assert_parity("export", exported.detach(), expected.detach(), TABLE)
