"""The authors' implementation, through the public interface: checkpoints, outputs, gradients, merge, training."""

import math

import pytest
import torch
import torch.nn.functional as F

import mora
from mora_kernels.testing import assert_parity
from tests.mora.models import GOLDEN, golden_clip, open_clip_twin

FILES = ["official_qv_rank4", "official_kv_rank8"]
TABLE = {torch.float32: 2e-5}
KINDS = {"modality_A": "specific_a", "modality_B": "specific_b", "shared_magnitude": "common_magnitude"}


def load(name, family):
    model, config, tensors = golden_clip(name)
    if family == "open_clip":
        model = open_clip_twin(model)
    weight, bias = mora.load_official(model, GOLDEN / f"{name}.best_model.pt")
    for module in model.modules():
        if isinstance(module, mora.MoraLinear):
            module.dropout = 0.0
    classifier = mora.MissingModalityClassifier(model, len(bias))
    classifier.head.load_state_dict({"weight": weight, "bias": bias})
    return classifier, config, tensors


def official_name(name):
    """image.2.v.specific_a -> model.vision_model.encoder.layers.2.self_attn.v_proj.modality_A."""
    inverse = {ours: theirs for theirs, ours in KINDS.items()}
    modality, layer, target, kind = name.split(".")
    tower = "vision" if modality == "image" else "text"
    return f"model.{tower}_model.encoder.layers.{layer}.self_attn.{target}_proj.{inverse.get(kind, kind)}"


def official_gradients(tensors, config):
    """Gradients of the golden file by our names."""
    found = {}
    for key, tensor in tensors.items():
        if not key.startswith("grad."):
            continue
        name = key.removeprefix("grad.")
        if ".shared_params." in name:
            layer = int(name.split("layers.")[1].split(".")[0]) - config["first_layer"]
            found[f"common.{layer}.{'text' if name.endswith('A') else 'image'}"] = tensor
        else:
            found[name] = tensor.squeeze(0) if name.endswith("magnitude") else tensor
    return found


@pytest.mark.parametrize("family", ["hugging_face", "open_clip"])
@pytest.mark.parametrize("name", FILES)
def test_logits_and_every_gradient(name, family):
    classifier, config, tensors = load(name, family)
    classifier.train()
    logits = classifier(tensors["input.pixel_values"], tensors["input.input_ids"])
    loss = F.cross_entropy(logits, tensors["input.labels"])
    loss.backward()
    assert_parity("logits", logits, tensors["out.logits"], TABLE)
    assert_parity("loss", loss, tensors["out.loss"].squeeze(), TABLE)
    expected = official_gradients(tensors, config)
    actual = {"cls_head.weight": classifier.head.weight, "cls_head.bias": classifier.head.bias}
    for ours, parameter in mora.adapter_parameters(classifier.model):
        actual[ours if ours.startswith("common") else official_name(ours)] = parameter
    assert set(actual) == set(expected)
    for key, parameter in actual.items():
        assert_parity(f"grad.{key}", parameter.grad, expected[key], TABLE)
    trainable = sum(p.numel() for p in classifier.parameters() if p.requires_grad)
    assert trainable == config["trainable"]


@pytest.mark.parametrize("family", ["hugging_face", "open_clip"])
@pytest.mark.parametrize("name", FILES)
def test_features_and_merge(name, family):
    classifier, _, tensors = load(name, family)
    model = classifier.eval().model
    pixels, ids = tensors["input.pixel_values"], tensors["input.input_ids"]
    with torch.no_grad():
        assert_parity("image", classifier.towers["image"].encode(model, pixels), tensors["out.image_features"], TABLE)
        assert_parity("text", classifier.towers["text"].encode(model, ids), tensors["out.text_features"], TABLE)
        mora.merge(model)
        assert_parity("logits", classifier(pixels, ids), tensors["out.logits_merged"], TABLE)
    if family == "hugging_face":
        merged = [key for key in tensors if key.startswith("merged.")]
        assert len(merged) == 8
        for key in merged:
            weight = model.get_submodule(key.removeprefix("merged.model.")).weight
            assert_parity(key, weight, tensors[key], TABLE)


@pytest.mark.parametrize("name", FILES)
def test_official_checkpoint_round_trip(name, tmp_path):
    """Saved again, it is the same file content, key by key and in the same order."""
    classifier, _, _ = load(name, "hugging_face")
    path = mora.save_official(classifier.model, tmp_path / "best_model.pt", classifier.head, backbone_name="tiny")
    first = torch.load(GOLDEN / f"{name}.best_model.pt", weights_only=True)
    second = torch.load(path, weights_only=True)
    assert first.pop("_metadata") == second.pop("_metadata")
    assert set(first) == set(second)
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key


def test_training_curve():
    """60 steps as the authors train: every loss within 1e-5."""
    model, config, tensors = golden_clip("official_training_curve")
    mora.patch(
        model,
        rank=config["rank"],
        common_rank=config["common_rank"],
        alpha=config["alpha"],
        targets=config["targets"],
        first_layer=config["first_layer"],
        dropout=0.0,
    )
    classifier = mora.MissingModalityClassifier(model, config["num_classes"]).train()
    initial = {k.removeprefix("initial."): v for k, v in tensors.items() if k.startswith("initial.")}
    with torch.no_grad():
        for ours, parameter in mora.adapter_parameters(model):
            if ours.startswith("common"):
                _, position, modality = ours.split(".")
                prefix = f"model.text_model.encoder.layers.{int(position) + config['first_layer']}.self_attn.v_proj"
                value = initial[f"{prefix}.shared_params.shared_{'A' if modality == 'text' else 'B'}"]
            else:
                value = initial[official_name(ours)]
            parameter.copy_(value.view_as(parameter))
        classifier.head.weight.copy_(initial["cls_head.weight"])
        classifier.head.bias.copy_(initial["cls_head.bias"])

    settings = dict(config["optimizer"])
    settings.pop("name")
    optimizer = torch.optim.AdamW([p for p in classifier.parameters() if p.requires_grad], **settings)
    warmup, steps = config["schedule"]["warmup_steps"], config["steps"]

    def factor(step):
        if step < warmup:
            return step / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    losses = []
    for step in range(steps):
        batch = step % config["batches"]
        logits = classifier(tensors["input.pixel_values"][batch], tensors["input.input_ids"][batch])
        loss = F.cross_entropy(logits, tensors["input.labels"][batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    difference = (torch.tensor(losses, dtype=torch.float64) - tensors["out.losses"]).abs()
    assert difference.max() <= 1e-5, difference
