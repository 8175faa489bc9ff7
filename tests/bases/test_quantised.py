"""A quantised model is adapted as the plain one that holds its dequantised weights, and comes back bit for bit."""

import copy
import json

import pytest
import torch
from torch import nn

import mora
from mora.bases.base import Base
from mora.methods.start import column_norms
from tests.bases.worlds import QUANTISED, by_torchao, dequantised, linears, plain, quantised
from tests.mora.models import embed, randomise
from tests.mora.oracle import SMALL

TARGETS = ("q", "fc1", "fc2")
SCALES = {
    "nf4": lambda base: base.state.state2.absmax,
    "fp4": lambda base: base.state.absmax,
    "int8": lambda base: base.scale,
    "torchao int8": lambda base: base.linear.weight.scale,
    "torchao float8": lambda base: base.linear.weight.scale,
}
kinds = pytest.mark.parametrize("kind", QUANTISED)
classes = pytest.mark.parametrize("kind", ["nf4", "int8", "torchao float8"])  # one of each


@pytest.fixture
def reads(monkeypatch):
    """The bases that were dequantised, in order."""
    found, start = [], Base.weight

    def weight(self):
        found.append(self)
        return start(self)

    monkeypatch.setattr(Base, "weight", weight)
    return found


def patched(model, **options):
    torch.manual_seed(0)
    return mora.patch(model, **{"targets": TARGETS, "dropout": 0.0, "last_layers": 1, **options})


def energy(model):
    return sum(output.square().mean() for output in embed(model))


def close(ours, theirs, tolerance=1e-5):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@kinds
def test_as_the_plain_model_with_the_dequantised_weights(kind):
    """Start, forward, gradient by name, a step of training, and what is merged."""
    ours = quantised(kind)
    theirs = plain(ours)
    ours, theirs = patched(ours), patched(theirs)
    for (name, one), (_, other) in zip(ours.mora.projections(), theirs.mora.projections(), strict=True):
        assert torch.equal(one.common_magnitude, column_norms(other.weight)), name
        assert one.common_magnitude.dtype == one.specific_a.dtype == torch.float32
    mora.verify(randomise(ours)), mora.verify(randomise(theirs))
    steps = []
    for model in (ours, theirs):
        optimizer = torch.optim.SGD([p for _, p in mora.adapter_parameters(model)], 1e-2)
        outputs = embed(model)
        loss = energy(model)
        loss.backward()
        gradients = {name: parameter.grad.clone() for name, parameter in mora.adapter_parameters(model)}
        optimizer.step()
        steps.append((outputs, gradients, [p.detach() for _, p in mora.adapter_parameters(model)]))
    (outputs, gradients, after), (their_outputs, their_gradients, their_after) = steps
    close(outputs, their_outputs)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name], rtol=1e-4, atol=1e-5, msg=name)
    close(after, their_after)
    close(embed(ours), embed(theirs))
    mora.merge(ours, dequantise=True), mora.merge(theirs)
    for (name, one), (_, other) in zip(linears(ours), linears(theirs), strict=True):
        adapted = "layers.1" in name and any(part in name for part in ("q_proj", "fc"))
        assert type(one) is nn.Linear or not adapted, name
        torch.testing.assert_close(dequantised(one), other.weight, rtol=1e-5, atol=1e-5)
    close(embed(ours), embed(theirs))


@kinds
def test_dequantised_once_a_build_and_never_stale(kind, reads):
    model = randomise(patched(quantised(kind)))
    projections = dict(model.mora.projections())
    del reads[:]
    with torch.no_grad():
        call(model)
    assert len(reads) == len({id(base) for base in reads}) == len(projections)
    with torch.inference_mode(), mora.keeping(model):
        first = embed(model)
        del reads[:]
        close(embed(model), first, 0)
        assert not reads
        SCALES[kind](projections["image.1.q"].base).mul_(2)
        changed = embed(model)
        assert reads and not torch.equal(changed[0], first[0]) and torch.equal(changed[1], first[1])
    with torch.no_grad():
        close(embed(model), changed)


def call(model):
    """The model's own forward: one build of all projections."""
    from tests.mora.models import images, tokens

    return model(pixel_values=images(), input_ids=tokens())


@classes
def test_frozen_products_are_the_library_s_own_and_unpatching_is_exact(kind):
    model = quantised(kind)
    modules, state = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    before = embed(model)
    randomise(patched(model))
    with mora.disabled(model):
        close(embed(model), before, 0)
    assert state.keys() <= model.state_dict().keys()
    restored = mora.unpatch(copy.deepcopy(model))
    assert dict(mora.unpatch(model).named_modules()) == modules
    for one in (model, restored):
        found = one.state_dict()
        assert found.keys() == state.keys()
        for name, tensor in state.items():
            assert same_bits(found[name], tensor), name
        close(embed(one), before, 0)


def same_bits(one, other):
    if hasattr(type(one), "__tensor_flatten__"):
        names = [name for name in one.__tensor_flatten__()[0] if getattr(one, name) is not None]
        return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)
    return torch.equal(one, other)


@classes
def test_merging_asks_and_unmerging_brings_the_codes_back(kind):
    model = quantised(kind)
    modules = dict(linears(model))
    state, adapted = copy.deepcopy(model.state_dict()), embed(randomise(patched(model)))
    for verb in (mora.merge, lambda model: mora.combine(model, {"default": 0.5})):
        with pytest.raises(
            ValueError, match=r"^merge: the weights of image\.1\.q.*(int8|nf4|fp4|float8).*dequantise=True"
        ):
            verb(model)
        assert mora.adapters.record.is_patched(model)
    mora.merge(model, keep=True, dequantise=True)
    close(embed(model), adapted)
    mora.unmerge(model)
    close(embed(model), adapted)
    mora.unpatch(model)
    assert all(same_bits(model.state_dict()[name], tensor) for name, tensor in state.items())
    assert dict(linears(model)) == modules


@classes
def test_a_saved_adapter_says_which_weights_it_was_trained_on(kind, tmp_path):
    model = randomise(patched(quantised(kind)))
    folder = mora.save_adapter(model, tmp_path)
    fresh = mora.load_adapter(quantised(kind), folder)
    close(embed(fresh), embed(model), 1e-6)
    close(embed(mora.load_adapter(plain(quantised(kind)), folder)), embed(model))
    label = model.mora.group.projections[0].base.label
    assert set(json.loads((folder / "adapter_config.json").read_text())["held"].values()) == {label}
    full = SMALL["hugging_face"]()
    if kind == "nf4":
        with pytest.raises(ValueError, match=rf"^base: .*\(relative .*trained on {label}.*here they are plain"):
            mora.load_adapter(full, folder)
        assert not mora.adapters.record.is_patched(full)
    assert mora.adapters.record.is_patched(mora.load_adapter(full, folder, base="any"))


def test_named_adapters_take_turns_on_one_quantised_weight():
    model = randomise(patched(quantised("nf4"), targets=("q",)))
    first = embed(model)
    mora.add_adapter(model, "other", targets=("q", "fc1"), last_layers=1, dropout=0.0)
    theirs = plain(quantised("nf4"))
    alone = randomise(patched(theirs, targets=("q", "fc1")))
    tensors = mora.adapter_state_dict(alone)
    with torch.no_grad():
        for name, parameter in mora.adapter_parameters(model, "other"):
            parameter.copy_(tensors[name])
    close(embed(model), first, 0)
    with mora.using(model, "other"):
        close(embed(model), embed(alone))


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_other_methods_stand_on_the_same_weights(method):
    ours = quantised("nf4")
    theirs = patched(plain(ours), method=method)
    model = randomise(patched(ours, method=method))
    outputs, expected = embed(model), embed(randomise(theirs))
    close(outputs, expected)
    energy(model).backward(), energy(theirs).backward()
    named = dict(mora.adapter_parameters(theirs))
    for name, parameter in mora.adapter_parameters(model):
        torch.testing.assert_close(parameter.grad, named[name].grad, rtol=1e-4, atol=1e-5, msg=name)
    close(embed(mora.merge(model, dequantise=True)), expected)


def test_half_precision_weights_are_merged_in_float32():
    """One rounding, of the weight that float32 gives."""
    for dtype in (torch.float16, torch.bfloat16):
        model = randomise(mora.patch(SMALL["hugging_face"]().to(dtype), targets=TARGETS))
        exact = {
            name: projection.effective_weight(projection.weight.float()).to(dtype)
            for name, projection in model.mora.projections()
        }
        names = dict(zip(exact, (p.path for p in mora.summary(model).projections), strict=True))
        mora.merge(model)
        assert all(torch.equal(model.get_submodule(path).weight, exact[name]) for name, path in names.items())


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_model_s_own_dtype_is_computed_in(dtype, backend):
    model = quantised("nf4").to(dtype)
    theirs = plain(model).to(dtype)
    ours = randomise(patched(model, backend=backend))
    outputs = embed(ours, images_in(dtype))
    assert outputs[0].dtype == dtype
    close(
        [output.float() for output in outputs],
        [output.float() for output in embed(randomise(patched(theirs)), images_in(dtype))],
        0.1 if dtype != torch.float32 else 1e-5,
    )


def images_in(dtype):
    from tests.mora.models import images

    return images().to(dtype)


def test_open_clip_keeps_its_attention_in_full_precision():
    """`quantize_` leaves nn.MultiheadAttention alone; its MLPs are quantised, and adapted."""
    model = by_torchao("Int8WeightOnlyConfig")(SMALL["open_clip"]())
    randomise(patched(model, targets=("q", "out", "fc1")))
    bases = {name: projection.base for name, projection in model.mora.projections()}
    assert {name.rpartition(".")[2]: base is not None for name, base in bases.items()} == {
        "q": False,
        "out": False,
        "fc1": True,
    }
    outputs = embed(model)
    close(embed(mora.merge(model, dequantise=True)), outputs)


@pytest.mark.parametrize("bits", [4, 8])
def test_models_that_transformers_quantised(bits, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("bitsandbytes")
    SMALL["hugging_face"]().save_pretrained(tmp_path)
    config = transformers.BitsAndBytesConfig(
        **{f"load_in_{bits}bit": True, **({"bnb_4bit_quant_type": "nf4"} if bits == 4 else {})}
    )
    model = transformers.CLIPModel.from_pretrained(
        tmp_path, quantization_config=config, device_map="cpu", dtype=torch.float32
    ).train()
    theirs = randomise(patched(plain(model)))
    mora.verify(randomise(patched(model)))
    close(embed(model), embed(theirs))
