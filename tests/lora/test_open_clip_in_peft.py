"""What PEFT 0.21.2 does to open_clip's packed attention, which docs/adapters.md states, beside what mora does."""

import copy

import peft
import pytest
import torch

import mora
from tests.mora.models import embed, images, open_clip_model, randomise, tokens

pytestmark = pytest.mark.skipif(peft.__version__ != "0.21.2", reason="figures of another version of PEFT")


def moved(model):
    """Every adapter away from its start."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def difference(one, other):
    return float(((one - other).norm() / other.norm()).detach())


def test_all_linear_leaves_every_out_proj_dead_and_merging_changes_the_model():
    wrapped = moved(peft.get_peft_model(open_clip_model(), peft.LoraConfig(r=3, target_modules="all-linear")))
    before = embed(wrapped.base_model.model)
    sum(one.square().sum() for one in before).backward()
    found = {name: p.grad for name, p in wrapped.named_parameters() if p.requires_grad and "lora_A" in name}
    dead = [name for name, grad in found.items() if grad is None or not grad.any()]
    assert (len(dead), len(found)) == (8, 24)
    assert all("out_proj" in name for name in dead)
    assert not [name for name in found if ".in_proj" in name], "q, k and v are not adapted at all"
    assert difference(embed(wrapped.merge_and_unload())[0], before[0]) > 0.1


def test_attention_as_a_target_adds_the_update_of_out_proj_twice():
    wrapped = moved(peft.get_peft_model(open_clip_model(), peft.LoraConfig(r=3, target_modules=["attn"])))
    found, plain = wrapped.base_model.model.encode_image(images()), open_clip_model()
    once = copy.deepcopy(plain)
    with torch.no_grad():
        for model, times in ((once, 1), (plain, 2)):
            for index, block in enumerate(model.visual.transformer.resblocks):
                layer = wrapped.base_model.model.visual.transformer.resblocks[index].attn
                block.attn.in_proj_weight += layer.get_delta_weight("default")
                block.attn.out_proj.weight += times * layer.base_layer.out_proj.get_delta_weight("default")
    assert difference(once.encode_image(images()), found) > 0.1
    assert difference(plain.encode_image(images()), found) < 1e-5


def test_dora_on_packed_attention_is_refused():
    with pytest.raises(ValueError, match="DoRA"):
        peft.get_peft_model(open_clip_model(), peft.LoraConfig(r=3, target_modules=["attn"], use_dora=True))


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_here_every_adapter_gets_a_gradient_and_merging_changes_nothing(method):
    model = mora.patch(open_clip_model(), method=method, rank=3, targets=("q", "k", "v", "out"), last_layers=4)
    before = embed(randomise(model), images(), tokens())
    sum(one.square().sum() for one in before).backward()
    found = {name: parameter.grad for name, parameter in mora.adapter_parameters(model)}
    assert len(found) == 2 * 4 * 4 * (3 if method == "dora" else 2)
    assert all(grad is not None and grad.any() for grad in found.values())
    for one, expected in zip(embed(mora.merge(model)), before, strict=True):
        assert difference(one, expected) < 1e-5
