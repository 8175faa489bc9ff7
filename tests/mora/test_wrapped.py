"""Models inside wrappers and in shared memory, and a patch that runs out of memory halfway."""

import copy
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
import torch.multiprocessing  # registers how tensors are shared
from torch import nn

import mora
from tests.mora.models import embed, randomise
from tests.mora.oracle import SMALL

families = pytest.mark.parametrize("family", SMALL)


class Data(nn.Module):
    """As DataParallel and DistributedDataParallel hold a model."""

    def __init__(self, module):
        super().__init__()
        self.module = module


@torch.no_grad()
def embeddings(model):
    return embed(model)


@families
@pytest.mark.parametrize(
    "wrap", [torch.compile, Data, lambda model: torch.compile(Data(model))], ids=["compiled", "parallel", "both"]
)
def test_wrappers_leave_no_prefix_in_a_checkpoint(family, wrap, tmp_path):
    model = randomise(mora.patch(SMALL[family](), last_layers=1))
    wrapped = wrap(model)
    names = list(mora.adapter_state_dict(wrapped))
    assert names == list(mora.adapter_state_dict(model)) and not any("module" in n or "_orig" in n for n in names)
    mora.save_adapter(wrapped, tmp_path)
    fresh = mora.load_adapter(SMALL[family](), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(embeddings(model), embeddings(fresh), strict=True))
    mora.load_adapter(wrap(mora.patch(SMALL[family](), last_layers=1)), tmp_path)


@families
def test_shared_memory_keeps_values_and_ties(family):
    """`share_memory_` moves the storages; what a worker gets reads the very same adapters."""
    model = randomise(mora.patch(SMALL[family](), last_layers=1))
    before = embeddings(model)
    model.share_memory()
    assert all(torch.equal(a, b) for a, b in zip(before, embeddings(model), strict=True))
    worker = ForkingPickler.loads(ForkingPickler.dumps(model))
    with torch.no_grad():
        dict(mora.adapter_parameters(model))["common.0.text"].mul_(3)
    first, second = embeddings(copy.deepcopy(model)), embeddings(worker)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], before[0]) and not torch.equal(first[1], before[1])


@families
@pytest.mark.parametrize("call", [0, 3])
def test_out_of_memory_within_patch_leaves_the_model_as_it_was(family, call, monkeypatch):
    model, calls = SMALL[family](), []
    modules, state = dict(model.named_modules()), {n: t.clone() for n, t in model.state_dict().items()}
    start = mora.methods.linear.MoraLinear.__init__

    def fail(self, *arguments):
        calls.append(self)
        if len(calls) > call:
            raise torch.OutOfMemoryError("out of memory")
        start(self, *arguments)

    monkeypatch.setattr(mora.methods.linear.MoraLinear, "__init__", fail)
    with pytest.raises(torch.OutOfMemoryError):
        mora.patch(model)
    assert dict(model.named_modules()) == modules and not mora.adapters.record.is_patched(model)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    monkeypatch.undo()
    embeddings(mora.patch(model))
