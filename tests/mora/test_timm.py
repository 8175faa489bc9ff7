"""Image towers of timm's and ResNets in open_clip models: fused q, k, v, attention that pools, batch norms."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import mora
from mora.census.check import randomise
from mora.census.shrink import built
from mora.towers import towers_of
from mora_kernels import effective_weight
from mora_kernels.testing import assert_parity

TABLE = {torch.float64: 1e-10}
FUSED = ("ViT-B-16-SigLIP", "EVA01-g-14", "PE-Core-T-16-384", "MobileCLIP-S1")
EVERY = (*FUSED, "EVA02-B-16", "RN50")
ONE = {"last_layers": 1, "dropout": 0.0}


def images(model, batch=3):
    return towers_of(model)["image"].random(model, batch, torch.Generator().manual_seed(0)).double()


@torch.no_grad()
def embedded(model):
    return model.encode_image(images(model))


@pytest.mark.parametrize("name", FUSED)
def test_each_slice_of_the_packed_weight_is_a_projection_of_its_own(name):
    """Merged rows are equation (1) of each slice alone, by the reference; those of k stay."""
    model = built(name)
    slot = towers_of(model)["image"].slots(model)[-1]
    before = slot.attention.qkv.weight.detach().clone()
    randomise(mora.patch(model, targets=("q", "v"), **ONE))
    expected = list(before.chunk(3))
    for target, position in (("q", 0), ("v", 2)):
        projection = dict(model.mora.projections())[f"image.{slot.layer}.{target}"]
        factors = (*projection.factors(), projection.alpha)
        expected[position] = effective_weight(expected[position], *factors, backend="reference").detach()
    mora.merge(model)
    assert type(slot.attention.qkv) is nn.Linear
    assert_parity("weight", slot.attention.qkv.weight.detach(), torch.cat(expected), TABLE)
    assert torch.equal(slot.attention.qkv.weight.chunk(3)[1], before.chunk(3)[1])


@pytest.mark.parametrize("name", EVERY)
def test_base_checkpoints_load_both_ways(name):
    model, base = built(name), built(name)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.01)
    mora.patch(model, init="identity", **ONE)
    weights = base.state_dict()
    assert set(weights) <= set(model.state_dict())
    model.load_state_dict(weights)
    assert_parity("embeddings", embedded(model), embedded(base), TABLE)
    mora.unpatch(model)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", EVERY)
def test_what_is_kept_and_what_is_split_compute_the_same(name):
    model = randomise_patched(built(name))
    expected = embedded(model)
    with torch.inference_mode(), mora.keeping(model):
        for _ in range(2):
            assert_parity("kept", model.encode_image(images(model)), expected, TABLE)
    copied = copy.deepcopy(model)
    assert torch.equal(embedded(copied), expected)
    base = built(name)
    slot = towers_of(base)["image"].slots(base)[-1]
    weights, plain = {key: tensor.clone() for key, tensor in base.state_dict().items()}, embedded(base)
    targets = ("q", "k", "v")
    slot.split(targets)
    assert all(isinstance(base.get_submodule(path), nn.Linear) for path in slot.linear_names(targets))
    assert_parity("split", embedded(base), plain, TABLE)
    slot.unsplit(targets)
    assert torch.equal(embedded(base), plain) and list(base.state_dict()) == list(weights)


def randomise_patched(model, **options):
    torch.manual_seed(0)
    mora.patch(model, **{**ONE, "targets": ("q", "k", "v"), **options})
    randomise(model)
    return model


@pytest.mark.parametrize("name", EVERY)
def test_dropout_draws_for_every_projection(name):
    """In training each of q, k, v drops entries of its own; the mean over draws is what is computed without."""
    model = randomise_patched(built(name), dropout=0.2).train()
    first, second = embedded(model), embedded(model)
    assert not torch.equal(first, second)
    assert torch.equal(embedded(mora.verify(model).eval()), embedded(model))


def wrapped_block(model):
    model.visual.trunk.blocks[-1] = checkpoint_wrapper(model.visual.trunk.blocks[-1])


def wrapped_attention(model):
    model.visual.trunk.blocks[-1].attn = checkpoint_wrapper(model.visual.trunk.blocks[-1].attn)


@pytest.mark.parametrize("wrap", [wrapped_block, wrapped_attention])
@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "EVA01-g-14", "EVA02-B-16"])
def test_a_wrapped_block_or_attention_is_adapted_inside(name, wrap):
    model, plain = built(name), built(name)
    wrap(model)
    mora.verify(randomise_patched(model))
    randomise_patched(plain)
    assert_parity("embeddings", embedded(model), embedded(plain), TABLE)
    mora.unpatch(model)
    assert_parity("unpatched", embedded(model), embedded(built(name)), TABLE)


def test_attention_that_reads_the_packed_weight_calls_it_while_adapted():
    model = built("EVA01-g-14")
    attention = model.visual.trunk.blocks[-1].attn
    assert attention.q_bias is not None and not attention.qkv_bias_separate
    before = embedded(model)
    mora.verify(randomise_patched(model))
    assert attention.qkv_bias_separate
    with mora.disabled(model):
        assert_parity("disabled", embedded(model), before, TABLE)
    mora.unpatch(model)
    assert not attention.qkv_bias_separate and torch.equal(embedded(model), before)
    del attention.qkv_bias_separate
    with pytest.raises(ValueError, match=r"EvaAttention that reads the weight of .*attn\.qkv and never calls it"):
        mora.patch(model, **ONE)


class Reads(nn.Module):
    """An attention of the user's that reads the packed weight."""

    def __init__(self, attention):
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj

    def forward(self, x, **_):
        return self.proj(F.linear(x, self.qkv.weight, self.qkv.bias).chunk(3, -1)[2])


def test_a_dead_adapter_is_refused_at_patch():
    model = built("ViT-B-16-SigLIP")
    model.visual.trunk.blocks[-1].attn = Reads(model.visual.trunk.blocks[-1].attn)
    with pytest.raises(ValueError, match=r"image\.1\.q, image\.1\.v would never run"):
        mora.patch(model, **ONE)
    assert type(model.visual.trunk.blocks[-1].attn.qkv) is nn.Linear


@pytest.mark.parametrize("name", ["RN50", "MobileCLIP-S1"])
def test_frozen_batch_norms_keep_to_their_statistics(name):
    model = randomise_patched(built(name))
    buffers, expected = {key: value.clone() for key, value in model.named_buffers()}, embedded(model)
    model.train()
    assert_parity("training", embedded(model), expected, TABLE)
    mora.verify(model)
    assert all(torch.equal(value, buffers[key]) for key, value in model.named_buffers())
    norms = [module for module in mora.unpatch(model).modules() if isinstance(module, nn.BatchNorm2d)]
    model.train()
    embedded(model)
    assert norms and any(not torch.equal(value, buffers[key]) for key, value in model.named_buffers())


def test_the_pool_of_a_resnet_is_its_one_row():
    model = built("RN50")
    pool, x = model.visual.attnpool, torch.randn(2, 256, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        expected = pool(x)
        mora.patch(model, init="identity", targets=("q", "k", "v"), **ONE)
        stand_in = model.visual.attnpool
        assert stand_in is not pool and list(stand_in._modules) == ["q_proj", "k_proj", "v_proj", "c_proj"]
        assert_parity("pooled", stand_in(x), expected, TABLE)
        with mora.disabled(model):
            assert torch.equal(stand_in(x), expected)
    assert mora.unpatch(model).visual.attnpool is pool


def test_a_tower_without_attention_runs_and_stays_frozen():
    model = built("convnext_tiny")
    with pytest.raises(
        ValueError, match=r"ConvNeXt, which has no attention .*adapt=\{'image': 'frozen', 'text': 'mora'\}"
    ):
        mora.patch(model)
    mora.verify(mora.patch(model, adapt={"image": "frozen", "text": "mora"}, **ONE))
    assert {name.split(".")[0] for name, _ in model.mora.projections()} == {"text"}
    classifier = mora.MissingModalityClassifier(model, 3).eval()
    assert classifier.missing_image.shape == (3, 64, 64)
    assert classifier(images(model), None).shape == (3, 3)


def test_white_is_the_tower_s_own():
    model = built("ViT-B-16-SigLIP")
    model.visual.preprocess_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    assert towers_of(model)["image"].substitute(model).unique().tolist() == [1.0]
