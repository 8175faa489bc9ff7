"""The unit is the tower: a kind that only says where its blocks are and how it is run works everywhere."""

import copy
import pickle
from dataclasses import dataclass

import open_clip
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

import mora
from mora.savings.plan import Plan
from mora.savings.runner import Runner
from mora.towers import Tower, recipes, towers_of
from mora.towers.layouts import Separate
from mora_kernels.testing import assert_parity
from tests.mora.models import IMAGE, MODELS, VOCABULARY, images, randomise, tokens

TABLE = {torch.float32: 2e-5, torch.float64: 1e-10}
NAMES = {"q": "mix.q", "k": "mix.k", "v": "mix.v", "out": "mix.proj.dense"}


class Mix(nn.Module):
    """Attention of one head."""

    def __init__(self, width):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.ModuleDict({"dense": nn.Linear(width, width)})

    def forward(self, x):
        return self.proj.dense(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(width), Mix(width)

    def forward(self, x):
        return x + self.mix(self.norm(x))


class Made(nn.Module):
    """A model of no library: two stacks that take rows [B, 5, width]."""

    def __init__(self, image=16, text=24, depth=3):
        super().__init__()
        self.stacks = nn.ModuleDict(
            {
                name: nn.ModuleList(Block(width) for _ in range(depth))
                for name, width in (("image", image), ("text", text))
            }
        )


def placed(blocks, path):
    """(dotted path in the model, block) of a list."""
    return ((f"{path}.{index}", block) for index, block in enumerate(blocks))


@dataclass(frozen=True)
class MadeTower(Tower):
    """No more than a kind of tower needs."""

    size: int
    kind = "made up"

    def slots(self, model):
        return Separate(NAMES).slots(self.modality, placed(model.stacks[self.modality], f"stacks.{self.modality}"))

    def encode(self, model, inputs):
        for block in model.stacks[self.modality]:
            inputs = block(inputs)
        return inputs.mean(dim=1)

    def width(self, model):
        return self.size

    def substitute(self, model):
        return torch.ones(5, self.size)

    def random(self, model, batch, generator=None):
        return torch.randn(batch, 5, self.size, generator=generator)


class MadeRecipe(recipes.Recipe):
    name, looked_for = "made up", "stacks"

    def matches(self, model):
        return isinstance(model, Made)

    def unsupported(self, model):
        return []

    def towers(self, model):
        return {name: MadeTower(name, stack[0].norm.weight.numel()) for name, stack in model.stacks.items()}


@pytest.fixture
def made(monkeypatch):
    monkeypatch.setattr("mora.towers.find.RECIPES", (MadeRecipe(), *recipes.RECIPES))
    torch.manual_seed(0)
    return Made()


def test_five_methods_make_a_tower(made, tmp_path):
    """Patch, proof, equation, gradients, files, classifier with and without savings, merge, unpatch bit for bit."""
    base = copy.deepcopy(made)
    inputs = {name: tower.random(made, 4) for name, tower in towers_of(made).items()}
    embed = lambda model: [tower.encode(model, inputs[name]) for name, tower in towers_of(model).items()]  # noqa: E731
    plain = embed(made)
    model = randomise(mora.verify(mora.patch(made, dropout=0.0, targets=("q", "k", "v", "out"))))
    assert mora.summary(model).projections[3].path == "stacks.image.1.mix.proj.dense"
    adapted = embed(model)
    for modality, one, other in zip(inputs, embed_disabled(model, embed), plain, strict=True):
        assert torch.equal(one, other), modality
    assert not torch.allclose(adapted[0], plain[0])

    loaded = mora.load_adapter(copy.deepcopy(base), mora.save_adapter(model, tmp_path))
    for modality, one, other in zip(inputs, embed(loaded), adapted, strict=True):
        assert torch.equal(one, other), modality
    saving, nothing = (
        mora.MissingModalityClassifier(loaded, 3, savings=savings) for savings in (None, mora.Savings.none())
    )
    nothing.head = saving.head
    assert saving.saved() == [f"{name}: runs from end to end: towers of kind 'made up' run whole" for name in inputs]
    assert saving.head.in_features == 16 + 24
    present = torch.tensor([True, False, True, True]), torch.tensor([True, True, False, False])
    for training in (True, False):
        logits = [one.train(training)(*inputs.values(), *present) for one in (saving, nothing)]
        assert_parity("logits", *logits, TABLE)
    with pytest.raises(ValueError, match="image: towers of kind 'made up' run whole"):
        mora.PrefixCache(saving, [])
    hidden = mora.Hidden(inputs["image"])
    with pytest.raises(ValueError, match="image: got rows past the frozen blocks, expected inputs: towers of kind"):
        saving(hidden, inputs["text"])

    for modality, one, other in zip(inputs, embed(mora.merge(loaded)), adapted, strict=True):
        assert_parity(modality, one.detach(), other.detach(), TABLE)
    mora.unpatch(model)
    assert all(torch.equal(tensor, base.state_dict()[name]) for name, tensor in model.state_dict().items())


def embed_disabled(model, embed):
    with mora.disabled(model):
        return embed(model)


def test_a_tower_that_is_not_cut_is_not_tried(made):
    tower = towers_of(made)["text"]
    plan = Runner(tower, mora.Savings()).plan(made, tower.substitute(made))
    assert plan == Plan(whole="towers of kind 'made up' run whole")


def test_a_tower_of_another_library_runs_beside_one_that_is_cut():
    """open_clip's image tower may be a ConvNeXt: a classifier takes it, `patch` names it."""
    torch.manual_seed(0)
    vision = {"timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "linear", "image_size": IMAGE}
    text = {"layers": 3, "width": 48, "heads": 4, "vocab_size": VOCABULARY, "context_length": 16}
    model = open_clip.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text).requires_grad_(False).eval()
    saving, nothing = (mora.MissingModalityClassifier(model, 3, savings=s).eval() for s in (None, mora.Savings.none()))
    nothing.head = saving.head
    assert saving.saved() == [
        "image: runs from end to end: towers of kind 'timm image' run whole",
        "text: all 3 blocks frozen, last block for the pooled row only, texts trimmed",
    ]
    present = torch.tensor([True, False, True]), torch.tensor([True, True, False])
    for given in ((images(), tokens(), *present), (None, tokens()), (images(), None)):
        assert_parity("logits", saving(*given), nothing(*given), TABLE)
    with pytest.raises(ValueError, match="the image tower is timm's ConvNeXt, which has no attention"):
        mora.patch(model)


@pytest.mark.parametrize("name", MODELS)
def test_towers_hold_no_model(name):
    model = MODELS[name]()
    towers = towers_of(model)
    assert list(towers) == ["image", "text"]
    for modality, tower in towers.items():
        assert tower.modality == modality
        assert pickle.loads(pickle.dumps(tower)) == copy.deepcopy(tower) == tower
        assert len(pickle.dumps(tower)) < 300
        inputs = tower.random(model, 2)
        assert tower.encode(model, inputs).shape == (2, tower.width(model))
        assert tower.substitute(model).shape == inputs.shape[1:]
        assert [slot.block for slot in tower.slots(model)] == tower.blocks(model)


def test_projections_may_have_any_names():
    """BERT's stand at two depths, and its attention is what holds both."""
    config = transformers.BertConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=50
    )
    model = transformers.BertModel(config)
    parts = {"q": "query", "k": "key", "v": "value"}
    names = {target: f"attention.self.{name}" for target, name in parts.items()} | {"out": "attention.output.dense"}
    layout = Separate(names)
    slots = layout.slots("text", placed(model.encoder.layer, "encoder.layer"))
    assert [slot.path for slot in slots] == ["encoder.layer.0.attention", "encoder.layer.1.attention"]
    assert slots[1].attention is model.encoder.layer[1].attention
    assert slots[1].linear("q") is model.encoder.layer[1].attention.self.query
    assert slots[0].linear_names(("k", "out")) == [
        "encoder.layer.0.attention.self.key",
        "encoder.layer.0.attention.output.dense",
    ]
    model.encoder.layer[0].attention.self.query = nn.Identity()
    with pytest.raises(ValueError, match=r"looked for an nn\.Linear at encoder\.layer\.0\.attention\.self\.query, fou"):
        slots[0].linear("q")
    lacking = Separate({"q": "attention.self.query", "v": "attention.self.value"})
    with pytest.raises(ValueError, match="has no 'out', expected some of q, v"):
        lacking.slots("text", placed(model.encoder.layer, "encoder.layer"))[1].linear("out")
