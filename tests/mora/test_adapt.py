"""What is adapted of each tower: one tower alone, frozen towers, towers of uneven depth, values by tower and block."""

import json

import open_clip
import pytest
import torch

import mora
from mora import MoraConfig
from mora_kernels.testing import assert_parity
from tests.mora.models import (
    IMAGE,
    VOCABULARY,
    attention_of,
    embed,
    hugging_face_model,
    images,
    open_clip_model,
    randomise,
    tokens,
)

TABLE = {torch.float32: 2e-5, torch.float64: 1e-10}
FROZEN = {"image": "mora", "text": "frozen"}
MODELS = {"open_clip": open_clip_model, "hugging_face": hugging_face_model}
models = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def weight_by_hand(projection, others, alpha):
    """Equation (1) in float64, G summed over the given factors."""
    w, s, a, b, m_c, m_s = (
        tensor.detach().double()
        for tensor in (
            projection.weight,
            projection.common.of(projection.modality),
            projection.specific_a,
            projection.specific_b,
            projection.common_magnitude,
            projection.specific_magnitude,
        )
    )
    gram = sum(other.detach().double().T @ other.detach().double() for other in others)
    direction = lambda x: x / x.norm(dim=0).clamp(min=1e-5)  # noqa: E731
    return m_c * direction(w + alpha * s @ gram @ s.T) + m_s * direction(w + alpha * (a @ b).T)


@models
def test_one_tower_is_adapted_with_its_own_gram(make, tmp_path):
    """Patch, proof, equation, gradients, files, classifier with and without savings, merge, unpatch bit for bit."""
    base, model = make(), make().requires_grad_(False)
    plain = [one.detach().clone() for one in embed(model)]
    mora.verify(mora.patch(model, adapt=FROZEN, dropout=0.0, alpha=0.05))
    names = [name for name, _ in mora.adapter_parameters(randomise(model))]
    assert names[:2] == ["common.0.image", "common.1.image"] and not [name for name in names if "text" in name]
    for _, projection in model.mora.projections():
        expected = weight_by_hand(projection, [projection.common.of("image")], 0.05)
        assert_parity("W_eff", projection.effective_weight().double(), expected, {torch.float64: 1e-5})
    adapted = [one.detach().clone() for one in embed(model)]
    assert torch.equal(adapted[1], plain[1]) and not torch.allclose(adapted[0], plain[0])

    saved = mora.save_adapter(model, tmp_path / "adapter")
    content = json.loads((saved / "adapter_config.json").read_text())
    assert content["config"]["adapt"] == FROZEN and content["layers"] == {"image": [2, 3]}
    loaded = mora.load_adapter(make(), saved)
    assert all(torch.equal(one, other) for one, other in zip(embed(loaded), adapted, strict=True))

    saving, nothing = (mora.MissingModalityClassifier(loaded, 3, savings=s) for s in (None, mora.Savings.none()))
    nothing.head = saving.head
    assert saving.saved()[1].startswith("text: all 4 blocks frozen")
    present = torch.tensor([True, False, True]), torch.tensor([True, True, False])
    for training in (True, False):
        logits = [one.train(training)(images(), tokens(), *present) for one in (saving, nothing)]
        assert_parity("logits", *logits, TABLE)

    for one, other in zip(embed(mora.merge(loaded)), adapted, strict=True):
        assert_parity("embedding", one, other, TABLE)
    mora.unpatch(model)
    assert all(torch.equal(tensor, base.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_gradients_of_a_lone_factor_agree_between_backends():
    """S stands in C = S (S^T S) S^T four times; the fused backward and the reference's autograd count them all."""
    found = {}
    for backend in ("reference", "torch"):
        model = mora.patch(open_clip_model().double(), adapt=FROZEN, dropout=0.0, alpha=0.05, backend=backend)
        randomise(model).train()
        embed(model, images().double())[0].square().mean().backward()
        found[backend] = {name: p.grad for name, p in mora.adapter_parameters(model)}
    for name, expected in found["reference"].items():
        assert_parity(name, found["torch"][name], expected, TABLE)


def test_a_lone_factor_moves_w_as_much_as_two_towers_do():
    """With its own Gram alpha keeps its meaning: alpha C is as large as beside a tower of like width."""
    sizes = {}
    for adapt in (None, FROZEN):
        torch.manual_seed(0)
        model = mora.patch(open_clip_model(), adapt=adapt)
        common = next(model.mora.common_factors())
        s, (other, *_) = common.of("image"), common.others("image")
        sizes[str(adapt)] = torch.linalg.matrix_norm(s @ other.T @ other @ s.T).item()
    one, two = sizes.values()
    assert 0.5 < (two / 64) / (one / 48) < 2


def test_a_lone_tower_may_go_without_gram():
    model = randomise(mora.patch(open_clip_model(), adapt=FROZEN, variant="no-gram", alpha=0.05))
    _, projection = next(model.mora.projections())
    identity = [torch.eye(4)]
    expected = weight_by_hand(projection, identity, 0.05)
    assert_parity("W_eff", projection.effective_weight().double(), expected, {torch.float64: 1e-5})


def convnext_clip():
    torch.manual_seed(0)
    vision = {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear", "image_size": IMAGE}
    text = {"layers": 3, "width": 48, "heads": 4, "vocab_size": VOCABULARY, "context_length": 16}
    return open_clip.CustomTextCLIP(embed_dim=32, vision_cfg=vision, text_cfg=text).eval()


def test_a_tower_without_attention_may_stay_as_it_is():
    model = convnext_clip()
    with pytest.raises(ValueError, match=r"leave it as it is.*adapt=\{'image': 'frozen', 'text': 'mora'\}"):
        mora.patch(model)
    mora.verify(mora.patch(model, adapt={"image": "frozen", "text": "mora"}))
    assert model.mora.layers() == {"text": [1, 2]}
    assert mora.MissingModalityClassifier(model, 2)(images(), tokens()).shape == (3, 2)


@pytest.mark.parametrize(
    ("adapt", "message"),
    [
        (
            {"image": "full", "text": "mora"},
            r"^adapt\['image'\]: got 'full', expected one of 'mora', 'lora', 'dora', 'frozen'",
        ),
        ({"image": "frozen", "text": "frozen"}, r"^adapt: got 'frozen' for every tower"),
        ({"image": "mora"}, r"^adapt: got keys \['image'\] \(missing 'text'\), expected the towers, 'image', 'text'"),
        ({"image": "mora", "text": "mora", "audio": "mora"}, r"^adapt: got keys .*unknown 'audio'"),
        ("mora", r"^adapt: got 'mora', expected a mode for each tower"),
        ({}, r"^adapt: got keys \[\], expected names"),
    ],
)
def test_modes_are_checked(adapt, message):
    model = open_clip_model()
    with pytest.raises(ValueError, match=message):
        mora.patch(model, adapt=adapt)
    assert not hasattr(model, "mora")


def test_another_mode_than_the_patched_models_is_refused(tmp_path):
    saved = mora.save_adapter(mora.patch(open_clip_model(), adapt=FROZEN), tmp_path)
    model = mora.patch(open_clip_model())
    with pytest.raises(
        ValueError, match=r"^adapt: .* has \{'image': 'mora', 'text': 'frozen'\}, the patched model has"
    ):
        mora.load_adapter(model, saved)


def test_official_files_hold_pairs_of_both_towers(tmp_path):
    model = mora.patch(open_clip_model(), adapt=FROZEN)
    with pytest.raises(ValueError, match="got 2 blocks of image adapted, expected pairs of image and text"):
        mora.save_official(model, tmp_path / "best_model.pt", torch.nn.Linear(64, 2))


PAIRS = [
    # depths of image and text, configuration, pairs (image, text)
    ((4, 4), {}, [(2, 2), (3, 3)]),
    ((6, 3), {}, [(4, 1), (5, 2)]),
    ((6, 3), {"last_layers": 3}, [(3, 0), (4, 1), (5, 2)]),
    ((6, 3), {"pair_layers": "bottom"}, [(1, 1), (2, 2)]),
    ((6, 3), {"pair_layers": "bottom", "first_layer": 2}, [(2, 2)]),
    ((6, 3), {"pair_layers": "proportional"}, [(3, 1), (5, 2)]),
    ((3, 5), {"pair_layers": "proportional", "last_layers": 3}, [(0, 0), (1, 2), (2, 4)]),
    ((6, 3), {"last_layers": {"image": 4, "text": 2}}, [(2, None), (3, None), (4, 1), (5, 2)]),
    (
        (6, 3),
        {"last_layers": {"image": 4, "text": 2}, "pair_layers": "bottom"},
        [(2, 1), (3, 2), (4, None), (5, None)],
    ),
    (
        (6, 3),
        {"last_layers": {"image": 4, "text": 2}, "pair_layers": "proportional"},
        [(2, None), (3, 1), (4, None), (5, 2)],
    ),
    ((4, 4), {"layers": [3, 0]}, [(0, 0), (3, 3)]),
    ((6, 3), {"layers": {"image": [0, 5], "text": [0, 2]}}, [(0, 0), (5, 2)]),
    ((6, 3), {"layers": {"image": [1, 3, 5], "text": [2]}}, [(1, None), (3, None), (5, 2)]),
]


@pytest.mark.parametrize(("depths", "fields", "pairs"), PAIRS, ids=[str(row[:2]) for row in PAIRS])
def test_towers_of_uneven_depth_are_paired(depths, fields, pairs):
    model = mora.patch(open_clip_model(*depths), **fields)
    found = [
        tuple(pair[name].layer if name in pair else None for name in ("image", "text")) for pair in model.mora.pairs
    ]
    assert found == pairs


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pair_layers": "middle"}, r"^pair_layers: got 'middle', expected one of 'top', 'bottom', 'proportional'"),
        ({"first_layer": 1, "pair_layers": "proportional"}, r"^first_layer: got one with pair_layers='proportional'"),
        ({"layers": [1], "first_layer": 1}, "^layers: got them with first_layer"),
        ({"layers": []}, r"^layers: got \[\], expected a non-empty sequence"),
        ({"layers": [1, 1]}, "^layers: .*each block once"),
        ({"layers": [-1]}, "^layers: got -1, expected an int of at least 0"),
        ({"layers": 3}, "^layers: got 3, expected a non-empty sequence"),
        ({"layers": [7]}, "^layers: got 7 for the image tower, expected indices of its blocks, 0 to 5"),
        ({"layers": [4]}, "^layers: got 4 for the text tower, expected indices of its blocks, 0 to 2"),
        ({"last_layers": {"image": 4, "text": 9}}, r"^last_layers\['text'\]: got 9, expected at most.*6 image, 3 text"),
        ({"last_layers": {"image": 4}}, r"^last_layers: got keys \['image'\] \(missing 'text'\)"),
        ({"alpha": {"image": 4, "text": 0}}, r"^alpha\['text'\]: got 0, expected a positive number"),
        ({"targets": {"image": ["q"], "text": "v"}}, r"^targets\['text'\]: got 'v', expected a non-empty sequence"),
        ({"rank": {"image": {5: 4}, "text": 4}}, r"^rank\['image'\]: got blocks \[5\], expected 4 among them"),
        ({"rank": {"image": {5: 4, 4: 3}, "text": 4}}, "^common_rank: got None"),
        ({"rank": {"image": {"5": 4}, "text": 4}}, r"^rank\['image'\]: got keys \['5'\], expected indices of blocks"),
        ({"rank": {5: 4}}, r"^rank: got keys \[5\], expected names of modalities"),
    ],
)
def test_what_cannot_be_paired_is_named(fields, message):
    model = open_clip_model(6, 3)
    with pytest.raises(ValueError, match=message):
        mora.patch(model, **fields)
    assert not hasattr(model, "mora")


BY_TOWER = {
    "rank": {"image": {2: 3, 5: 5}, "text": 2},
    "common_rank": 4,
    "alpha": {"image": 0.1, "text": 0.02},
    "targets": {"image": ("q", "k"), "text": ("v", "out")},
    "layers": {"image": (2, 5), "text": (2,)},
    "pair_layers": "bottom",
    "adapt": {"image": "mora", "text": "mora"},
}


def test_values_by_tower_and_block_reach_the_projections(tmp_path):
    model = randomise(mora.verify(mora.patch(open_clip_model(6, 3), **BY_TOWER)))
    found = {
        name: (p.alpha, p.common.rank, p.specific_a.shape[1], len(p.common.modalities))
        for name, p in model.mora.projections()
    }
    assert found == {
        "image.2.q": (0.1, 4, 3, 2),
        "image.2.k": (0.1, 4, 3, 2),
        "text.2.v": (0.02, 4, 2, 2),
        "text.2.out": (0.02, 4, 2, 2),
        "image.5.q": (0.1, 4, 5, 1),
        "image.5.k": (0.1, 4, 5, 1),
    }
    for name, projection in model.mora.projections():
        others = projection.common.others(projection.modality)
        expected = weight_by_hand(projection, others, found[name][0])
        assert_parity(name, projection.effective_weight().double(), expected, {torch.float64: 1e-5})
    loaded = mora.load_adapter(open_clip_model(6, 3), mora.save_adapter(model, tmp_path))
    assert loaded.mora.config == model.mora.config
    for one, other in zip(embed(loaded), embed(model), strict=True):
        assert torch.equal(one, other)
    mora.load_adapter(model, tmp_path)
    plain = open_clip_model(6, 3)
    with torch.no_grad():
        for name, projection in model.mora.projections():
            modality, layer, target = name.split(".")
            attention, weight = attention_of(plain, modality, int(layer)), projection.effective_weight()
            if target == "out":
                attention.out_proj.weight.copy_(weight)
            else:
                start = "qkv".index(target) * len(weight)
                attention.in_proj_weight[start : start + len(weight)] = weight
    for one, other in zip(embed(plain), embed(model), strict=True):
        assert_parity("embedding", other, one, TABLE)


def test_new_fields_are_written_only_where_they_say_something():
    """What was saved before loads, and what says nothing new is read by earlier versions."""
    assert [*MoraConfig().to_dict()] == [
        "rank", "common_rank", "alpha", "dropout", "targets", "last_layers", "first_layer", "init", "variant",
        "backend",
    ]  # fmt: skip
    config = MoraConfig(**BY_TOWER)
    assert MoraConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert MoraConfig(layers=[11, 10]).to_dict()["layers"] == [10, 11]


def test_each_block_of_a_lone_tower_counts_once_when_two_towers_are_one():
    """A frozen tower that shares blocks with the adapted one would be adapted with it."""
    model = open_clip_model()
    model.visual.transformer.resblocks[3].attn = model.transformer.resblocks[3].attn
    with pytest.raises(ValueError, match="are one object, expected blocks of their own"):
        mora.patch(model, adapt=FROZEN)
