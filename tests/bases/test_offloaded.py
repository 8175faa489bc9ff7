"""Weights that accelerate keeps elsewhere between calls: adapted as those at hand, exactly."""

import copy

import pytest
import torch

import mora
from tests.mora.models import embed, randomise
from tests.mora.oracle import SMALL

accelerate = pytest.importorskip("accelerate")
CPU = torch.device("cpu")
MAP = {"vision_model": "cpu", "text_model": "disk"} | dict.fromkeys(
    ("visual_projection", "text_projection", "logit_scale"), "cpu"
)
WAYS = {
    "memory": lambda model, folder: accelerate.cpu_offload(model, CPU),
    "disk": lambda model, folder: accelerate.disk_offload(model, folder, CPU),
    "both": lambda model, folder: accelerate.dispatch_model(model, dict(MAP), main_device="cpu", offload_dir=folder),
}


def patched(model):
    torch.manual_seed(0)
    return randomise(mora.patch(model, targets=("q", "fc1"), dropout=0.0, last_layers=1))


@pytest.fixture(params=WAYS)
def model(request, tmp_path):
    return WAYS[request.param](SMALL["hugging_face"](), str(tmp_path))


def equal(ours, theirs):
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def step(model):
    """Gradients by name of one step, and the outputs after it."""
    optimizer = torch.optim.SGD([parameter for _, parameter in mora.adapter_parameters(model)], 1e-2)
    sum(output.square().mean() for output in embed(model)).backward()
    optimizer.step()
    return {name: parameter.grad for name, parameter in mora.adapter_parameters(model)}, embed(model)


def test_as_the_model_at_hand(model):
    before, modules = embed(model), dict(model.named_modules())
    (gradients, after), (theirs, their_after) = step(patched(model)), step(patched(SMALL["hugging_face"]()))
    assert gradients.keys() == theirs.keys() and all(torch.equal(gradients[name], theirs[name]) for name in theirs)
    assert equal(after, their_after)
    with torch.inference_mode(), mora.keeping(model):
        assert equal(embed(model), after) and equal(embed(model), after)
    with mora.disabled(model):
        assert equal(embed(model), before)
    assert dict(mora.unpatch(model).named_modules()) == modules
    assert equal(embed(model), before)


def test_merging_writes_where_the_weights_are(model):
    outputs = embed(patched(model))
    if any(base.base.file for _, base in model.mora.projections() if hasattr(base.base, "file")):
        with pytest.raises(ValueError, match=r"^merge: the weights of .*accelerate's offload to disk.*dequantise=True"):
            mora.merge(model)
        mora.merge(model, dequantise=True)
    else:
        mora.merge(model, keep=True)
        assert equal(embed(model), outputs)
        mora.unmerge(model)
    assert equal(embed(model), outputs)


def test_weights_that_change_in_memory_are_followed():
    model = patched(accelerate.cpu_offload(SMALL["hugging_face"](), CPU))
    base = dict(model.mora.projections())["image.1.q"].base
    with torch.inference_mode(), mora.keeping(model):
        before = embed(model)
        base.value("weight").mul_(3)
        after = embed(model)
    assert not torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    with torch.no_grad():
        assert equal(embed(model), after)


def test_what_is_patched_first_says_so():
    model = accelerate.cpu_offload(patched(SMALL["hugging_face"]()), CPU)
    with pytest.raises(RuntimeError, match="with accelerate, offload first and patch then"):
        embed(model)


def test_a_saved_adapter_belongs_to_the_model_at_hand(model, tmp_path):
    whole = patched(SMALL["hugging_face"]())
    outputs = embed(whole)
    mora.load_adapter(model, mora.save_adapter(whole, tmp_path / "adapter"))
    assert equal(embed(model), outputs)
    copied = copy.deepcopy(whole)
    assert equal(embed(mora.load_adapter(copied, mora.save_adapter(model, tmp_path / "again"))), outputs)
