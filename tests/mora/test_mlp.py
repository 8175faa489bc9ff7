"""`targets=("fc1", "fc2")`: the MLP of every model, with and without attention beside it."""

import copy

import pytest
import torch
from torch import nn

import mora
from mora.adapters.record import adapters_of
from mora.runs.methods import adapt, fold
from mora.savings import Savings
from tests.mora.models import MODELS, embed, hugging_face_model, images, open_clip_model, randomise, tokens

TARGETS = [("fc1", "fc2"), ("q", "v", "fc1"), ("q", "k", "v", "out", "fc1", "fc2")]


def patched(family="hugging_face", targets=TARGETS[1], **options):
    return mora.patch(MODELS[family](), targets=targets, **{"dropout": 0.0, **options})


def equation(name, projection, adapters):
    """W_eff of one projection by equations (1) and (1'), in plain PyTorch."""

    def direction(matrix):
        return matrix / matrix.norm(dim=0).clamp(min=1e-5)

    modality, layer, _ = name.split(".")
    place = next(n for n, pair in enumerate(adapters.pairs) if modality in pair and pair[modality].layer == int(layer))
    common = adapters.common[place]
    sides = {tensor.shape[0]: tensor for own, tensor in common.named_parameters() if own.startswith(modality)}
    other = getattr(common, {"image": "text", "text": "image"}[modality])
    rows, columns = projection.weight.shape
    shared = projection.weight + projection.alpha * sides[rows] @ (other.T @ other) @ sides[columns].T
    own = projection.weight + projection.alpha * (projection.specific_a @ projection.specific_b).T
    return projection.common_magnitude * direction(shared) + projection.specific_magnitude * direction(own)


@pytest.mark.parametrize("targets", TARGETS, ids="".join)
@pytest.mark.parametrize("family", MODELS)
def test_life_of_an_adapter(family, targets, tmp_path):
    base = MODELS[family]()
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    plain = embed(base)
    model = mora.verify(mora.patch(base, targets=targets, dropout=0.0, init="identity"))
    torch.testing.assert_close(embed(model), plain, rtol=1e-4, atol=1e-5)
    assert mora.unpatch(model) is base and all(torch.equal(t, weights[n]) for n, t in base.state_dict().items())
    assert list(base.state_dict()) == list(weights)

    model = randomise(mora.patch(base, targets=targets, dropout=0.0, alpha=0.05))
    record = adapters_of(model)
    assert [name for name, _ in record.projections()] == [
        f"{modality}.{layer}.{target}" for layer in (2, 3) for modality in ("image", "text") for target in targets
    ]
    for name, projection in record.projections():
        torch.testing.assert_close(projection.effective_weight(), equation(name, projection, record))
    adapted = embed(model)
    sum(embedding.square().sum() for embedding in adapted).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for _, p in mora.adapter_parameters(model))
    assert not any(p.requires_grad for n, p in model.named_parameters() if n in weights)

    mora.save_adapter(model, tmp_path / "adapter")
    again = mora.load_adapter(MODELS[family](), tmp_path / "adapter")
    torch.testing.assert_close(embed(again), adapted, rtol=0, atol=0)
    torch.testing.assert_close(embed(mora.merge(model)), adapted, rtol=1e-4, atol=1e-4)
    assert list(model.state_dict()) == list(weights)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("family", MODELS)
def test_savings_change_nothing(family, training):
    model = randomise(patched(family, TARGETS[2]))
    present = torch.tensor([True, False, True]), torch.tensor([True, True, False])
    logits, gradients = [], []
    for savings in (Savings(), Savings.none()):
        torch.manual_seed(0)
        classifier = mora.MissingModalityClassifier(model, 3, savings=savings).train(training)
        logits.append(classifier(images(3), tokens(3), *present))
        if training:
            model.zero_grad()
            logits[-1].square().sum().backward()
            gradients.append({name: p.grad.clone() for name, p in mora.adapter_parameters(model)})
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)
    if training:
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_dropout_drops_the_hidden_units_that_fc2_reads():
    """Equation (2) for fc2: y = dropout(act(fc1(x))) W_eff^T + b, and its gradient, with the mask that was drawn."""
    model = patched(targets=("fc2",), dropout=0.5).train()
    projection = dict(adapters_of(model).projections())["image.3.fc2"]
    hidden = torch.randn(64, projection.in_features, requires_grad=True)
    y = projection(hidden)
    (gradient,) = torch.autograd.grad(y.sum(), hidden)
    kept = gradient / projection.effective_weight().sum(dim=0) / 2
    assert 0.45 < kept.mean() < 0.55
    torch.testing.assert_close(kept, kept.round(), rtol=0, atol=1e-3)
    expected = (2 * kept.round() * hidden) @ projection.effective_weight().T + projection.bias
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("names", [("c_fc", "c_proj"), ("mlp.fc1", "mlp.fc2"), ("lin1", "lin2"), ("up_proj", "fc2")])
def test_names_of_other_libraries(names):
    assert mora.MoraConfig(targets=names).targets == ("fc1", "fc2")


def test_the_common_factors_of_an_mlp_are_named_by_their_width():
    names = [name for name, _ in mora.adapter_parameters(patched(targets=("fc1",))) if name.startswith("common.0")]
    assert names == ["common.0.image", "common.0.text", "common.0.image_128", "common.0.text_96"]
    table = str(mora.summary(patched(targets=("q", "fc1"))))
    assert "128 x 64" in table and "64 x 64" in table


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("make", [open_clip_model, hugging_face_model])
def test_lora_has_the_same_targets(make, method):
    model, plain = make(), embed(make())
    config = mora.MoraConfig(targets=TARGETS[1], dropout=0.0)
    trained = adapt(model, method, config, 1.0)
    adapted = [name for name in trained if "lora_A" in name]
    assert len(adapted) == 12 and len([name for name in adapted if "mlp" in name]) == 4
    torch.testing.assert_close(embed(model), plain, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.add_(0.01 if "lora" in name else 0)
    expected = embed(model)
    torch.testing.assert_close(embed(fold(model, method, config)), expected, rtol=1e-4, atol=1e-4)
    assert list(model.state_dict()) == list(make().state_dict())


def test_the_reference_implementation_s_file_has_no_place_for_it(tmp_path):
    with pytest.raises(ValueError, match=r"^targets: got 'fc1', expected attention alone"):
        mora.save_official(patched(), tmp_path / "best_model.pt", nn.Linear(64, 3))
    assert not any(tmp_path.iterdir())


def test_an_mlp_that_two_blocks_share_is_refused():
    model = hugging_face_model()
    layers = model.vision_model.encoder.layers
    layers[1].mlp = layers[3].mlp
    with pytest.raises(ValueError, match=r"are one object, expected blocks of their own"):
        mora.patch(model, targets=("fc1",))
    mora.patch(model, targets=("q",))


def test_a_block_without_a_known_mlp_is_refused():
    model = hugging_face_model()
    for layer in model.vision_model.encoder.layers:
        layer.mlp.fc3 = layer.mlp.fc2
        del layer.mlp.fc2
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"^targets: vision_model\.encoder\.layers\.0 .* looked for an MLP of two"):
        mora.patch(model, targets=("q", "fc1"))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_rank_above_the_narrowest_side_is_refused():
    with pytest.raises(ValueError, match=r"^rank: got 60, expected at most 48, the width of text_model"):
        patched(rank=60)


class Mixer(nn.Module):
    """Blocks without attention: an MLP alone, under names of its own."""

    def __init__(self, width=16):
        super().__init__()
        pairs = ({"up": nn.Linear(width, 40), "down": nn.Linear(40, width)} for _ in "ab")
        self.layers = nn.ModuleList(map(nn.ModuleDict, pairs))

    def encode_sound(self, x):
        for layer in self.layers:
            x = x + layer["down"](layer["up"](x).relu())
        return x


def test_blocks_of_one_s_own_without_attention():
    model, x = Mixer(), torch.randn(5, 16)
    tower = mora.Tower("layers", projections={"fc1": "up", "fc2": "down"}, example=x[0])
    before = model.encode_sound(x)
    mora.patch(model, towers={"sound": tower}, targets=("fc1", "fc2"), dropout=0.0, init="identity")
    torch.testing.assert_close(model.encode_sound(x), before)
    assert [name for name, _ in mora.adapter_parameters(model)][:2] == ["common.0.sound", "common.0.sound_40"]


class Block(nn.Module):
    """Attention under one name, the MLP under another."""

    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(16, 16) for _ in "qkv")
        self.wide, self.narrow = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x):
        attended = nn.functional.scaled_dot_product_attention(self.q_proj(x), self.k_proj(x), self.v_proj(x))
        return x + self.narrow(self.wide(x + attended).relu())


def test_an_mlp_may_be_named_beside_the_attention():
    model = nn.Module()
    model.layers = nn.ModuleList(Block() for _ in "ab")
    names = {"q": "q_proj", "v": "v_proj", "fc1": "wide", "fc2": "narrow"}
    mora.patch(model, towers={"a": mora.Tower("layers", projections=names)}, targets=("q", "fc1", "fc2"))
    assert {type(module).__name__ for module in (model.layers[1].q_proj, model.layers[1].wide)} == {"MoraLinear"}
    mora.unpatch(model)
    with pytest.raises(ValueError, match=r"^targets: layers\.0 .* looked for an MLP of two linears"):
        mora.patch(model, towers={"a": "layers"}, targets=("fc1",))
