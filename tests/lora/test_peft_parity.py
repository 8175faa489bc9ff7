"""LoRA and DoRA on Hugging Face CLIP beside PEFT's own: outputs, gradients by name, training, merging."""

import copy

import peft
import pytest
import torch

import mora
from mora_kernels.testing import assert_parity
from tests.mora.models import embed, hugging_face_model, images, tokens

TABLE = {torch.float32: 2e-5, torch.float64: 1e-10}
PEFT_NAMES = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "out": "self_attn.out_proj"}
PEFT_NAMES |= {"fc1": "mlp.fc1", "fc2": "mlp.fc2"}
KINDS = {"lora_a": "lora_A.default.weight", "lora_b": "lora_B.default.weight"}
KINDS["magnitude"] = "lora_magnitude_vector.default.weight"
TOWERS = {"image": "vision_model", "text": "text_model"}
SETTINGS = {
    "plain": ({}, {}),
    "scaled": ({"lora_alpha": 6.0}, {"lora_alpha": 6.0}),
    "rslora": ({"lora_alpha": 6.0, "use_rslora": True}, {"lora_alpha": 6.0, "use_rslora": True}),
    "patterns": (
        {"rank_pattern": {"q": 5, "text.3.v": 2}, "alpha_pattern": {"image.2.v": 9.0}, "lora_alpha": 4.0},
        {
            "rank_pattern": {"q_proj": 5, "text_model.encoder.layers.3.self_attn.v_proj": 2},
            "alpha_pattern": {"vision_model.encoder.layers.2.self_attn.v_proj": 9.0},
            "lora_alpha": 4.0,
        },
    ),
}


def peft_name(name):
    """PEFT's parameter of one of ours, "image.3.q.lora_a"."""
    modality, layer, target, kind = name.split(".")
    return f"{TOWERS[modality]}.encoder.layers.{layer}.{PEFT_NAMES[target]}.{KINDS[kind]}"


def both(method, targets=("q", "v"), dtype=torch.float64, dropout=0.0, ours=None, theirs=None):
    """(a patched CLIP, the same under PEFT with the same factors)."""
    model, other = hugging_face_model().to(dtype), hugging_face_model().to(dtype)
    mora.patch(model, method=method, rank=3, targets=targets, dropout=dropout, last_layers=2, **(ours or {}))
    config = peft.LoraConfig(
        **{"r": 3, "lora_alpha": 3.0, **(theirs or {})},
        target_modules=[PEFT_NAMES[target] for target in targets],
        layers_to_transform=[2, 3],
        layers_pattern="layers",
        lora_dropout=dropout,
        use_dora=method == "dora",
    )
    peft.inject_adapter_in_model(config, other)
    generator = torch.Generator().manual_seed(3)
    theirs = dict(other.named_parameters())
    with torch.no_grad():
        for name, parameter in mora.adapter_parameters(model):
            if name.endswith("magnitude"):
                assert torch.equal(parameter, theirs[peft_name(name)])
                parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=generator, dtype=dtype))
            elif name.endswith("lora_b"):
                assert not theirs[peft_name(name)].any()
                assert not parameter.any()
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=dtype))
            theirs[peft_name(name)].copy_(parameter)
    return model, other


def loss_of(model):
    embeddings = embed(model, images().to(next(model.parameters()).dtype))
    return sum((one.sin() * torch.arange(one.numel()).view(one.shape)).mean() for one in embeddings)


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_outputs_and_every_gradient_are_those_of_peft(method, settings):
    ours, theirs = SETTINGS[settings]
    dropout = 0.2 if settings != "plain" else 0.0
    model, other = both(method, ("q", "v"), dropout=dropout, ours=ours, theirs=theirs)
    for training in (False, True):
        results = []
        for one in (model.train(training), other.train(training)):
            one.zero_grad()
            torch.manual_seed(4)
            loss = loss_of(one)
            loss.backward()
            results.append(loss.detach())
        assert_parity("loss", *results, TABLE)
        found = dict(other.named_parameters())
        for name, parameter in mora.adapter_parameters(model):
            assert parameter.grad is not None
            assert parameter.grad.any(), name
            assert_parity(name, parameter.grad, found[peft_name(name)].grad, TABLE)
    with torch.no_grad():
        for one, expected in zip(*(embed(m.eval(), images().double()) for m in (model, other)), strict=True):
            assert_parity("embedding", one, expected, TABLE)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_training_run_and_its_merge_are_those_of_peft(method):
    """Six steps of AdamW in float32 with dropout, all targets; then W_eff of every projection."""
    model, other = both(method, tuple(PEFT_NAMES), torch.float32, dropout=0.1)
    losses = []
    for one in (model.train(), other.train()):
        torch.manual_seed(5)
        optimizer = torch.optim.AdamW([p for p in one.parameters() if p.requires_grad], lr=3e-3)
        own = []
        for _ in range(6):
            optimizer.zero_grad()
            loss = loss_of(one)
            loss.backward()
            optimizer.step()
            own.append(loss.detach())
        losses.append(torch.stack(own))
    table = {torch.float32: 1e-4}
    assert_parity("losses", *losses, table)
    found = dict(other.named_parameters())
    for name, parameter in mora.adapter_parameters(model):
        assert_parity(name, parameter, found[peft_name(name)], {torch.float32: 2e-3})
    adapted = [one.detach() for one in embed(model.eval())]
    mora.merge(model)
    for name in [name for name, _ in other.named_modules() if name.endswith("base_layer")]:
        layer = other.get_submodule(name.removesuffix(".base_layer"))
        layer.merge()
        plain = name.removesuffix(".base_layer")
        assert_parity(plain, model.get_submodule(plain).weight, layer.get_base_layer().weight, {torch.float32: 2e-4})
    for one, expected in zip(embed(model), adapted, strict=True):
        assert_parity("embedding", one, expected, {torch.float32: 2e-5})


def test_half_precision_is_that_of_peft():
    """Factors are float32 beside bfloat16 weights, in both; so are the products of the update."""
    model, other = both("lora", dtype=torch.float64)
    halves = [copy.deepcopy(one).to(torch.bfloat16) for one in (model, other)]
    for name, module in halves[1].named_modules():
        if ".lora_" in name and hasattr(module, "weight"):
            module.float()
    for _, projection in halves[0].mora.projections():
        projection.lora_a.data, projection.lora_b.data = projection.lora_a.data.float(), projection.lora_b.data.float()
    with torch.no_grad():
        ours, theirs = (embed(one, images().bfloat16(), tokens()) for one in halves)
    for one, expected in zip(ours, theirs, strict=True):
        assert_parity("embedding", one.float(), expected.float(), {torch.float32: 2e-2})
