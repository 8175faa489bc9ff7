"""MoraConfig refuses what makes no sense, by name; presets are the published recipes."""

import pickle

import pytest

import mora
from mora import MoraConfig

WRONG = {
    "rank": [0, -1, 1.5, True, {}, {"": 4}, {1: 4}, {"image": 4, "text": 0}],
    "common_rank": [0, 2.0, "4"],
    "alpha": [-0.01, 0, float("nan"), float("inf"), "0.1", True],
    "dropout": [1.5, 1.0, -0.1, None],
    "targets": ["qv", (), ("q", "w"), ("q", "q"), None, ("qkv",)],
    "last_layers": [0, -1, None, 2.0],
    "first_layer": [-1, 1.5, "10"],
    "init": ["zeros", None],
    "variant": ["paper"],
    "backend": ["cuda"],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in WRONG for value in WRONG[field]])
def test_a_wrong_value_is_named(field, value):
    with pytest.raises(ValueError, match=rf"^{field}.*got .*expected"):
        MoraConfig(**{field: value})


def test_uneven_ranks_need_a_common_rank():
    with pytest.raises(ValueError, match="common_rank: got None"):
        MoraConfig(rank={"image": 4, "text": 8})
    assert MoraConfig(rank={"image": 4, "text": 8}, common_rank=3).shared_rank == 3


def test_identity_start_needs_the_specific_term():
    with pytest.raises(ValueError, match="^init: got 'identity'"):
        MoraConfig(init="identity", variant="no-specific")


def test_targets_take_any_order_and_keep_one():
    assert MoraConfig(targets=["v", "q"]).targets == ("q", "v")


@pytest.mark.parametrize("config", [MoraConfig(), MoraConfig(rank={"image": 2, "text": 3}, common_rank=1)], ids=str)
def test_round_trip(config):
    assert MoraConfig.from_dict(config.to_dict()) == config == pickle.loads(pickle.dumps(config))
    with pytest.raises(ValueError, match="^lora_rank: got an unknown field"):
        MoraConfig.from_dict({**config.to_dict(), "lora_rank": 1})


def test_presets_are_the_published_recipes():
    rows = {name: (c.targets, c.rank, c.shared_rank, c.alpha, c.last_layers) for name, c in mora.PRESETS.items()}
    assert rows == {
        "mmimdb": (("q", "k"), 4, 4, 0.001, 2),
        "food101": (("q", "v"), 4, 4, 0.01, 2),
        "hateful_memes": (("k", "v"), 8, 8, 0.1, 2),
    }
    assert all((c.dropout, c.init, c.variant) == (0.1, "official", "official") for c in mora.PRESETS.values())


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("use_dora", "method, which may be"),
        ("r", "rank"),
        ("target_modules", "targets, out of"),
        ("lora_dropout", "dropout"),
        ("layers_to_transform", "layers, last_layers or first_layer"),
    ],
)
def test_names_of_other_libraries_are_translated(name, here):
    from tests.mora.models import open_clip_model

    model = open_clip_model()
    with pytest.raises(
        TypeError, match=rf"^{name}: got an unknown field \({name} is {here}.*, expected some of rank, "
    ):
        mora.patch(model, mora.PRESETS["food101"], **{name: 8})
    with pytest.raises(TypeError, match="^gamma: got an unknown field, expected some of rank, .*alpha_pattern$"):
        mora.patch(model, gamma=1)
    assert not hasattr(model, "mora")


@pytest.mark.parametrize(
    ("targets", "here"),
    [
        (("q_proj", "v_proj"), ("q", "v")),
        (("self_attn.k_proj", "self_attn.out_proj"), ("k", "out")),
        (["query", "key", "value"], ("q", "k", "v")),
        (("to_out", "to_q"), ("q", "out")),
        (("o_proj", "wq"), ("q", "out")),
    ],
)
def test_projections_as_other_libraries_call_them_are_read(targets, here):
    config = MoraConfig(targets=targets)
    assert config.targets == here
    assert MoraConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("in_proj_weight", r" \(its parts are 'q', 'k', 'v' here\)"),
        ("qkv", r" \(its parts are 'q', 'k', 'v' here\)"),
        ("mlp", r" \(the linears of the MLP are 'fc1' and 'fc2' here\)"),
        ("mlp.gate_proj", r" \(the linears of the MLP are 'fc1' and 'fc2' here\)"),
        ("gamma", ""),
    ],
)
def test_projections_that_are_not_adapted_are_named(target, why):
    with pytest.raises(ValueError, match=rf"^targets: got unknown target '{target}'{why}, expected some of 'q'"):
        MoraConfig(targets=("q", target))


def test_a_projection_comes_once_by_whatever_name():
    with pytest.raises(ValueError, match=r"^targets: got \('q', 'q_proj'\), expected each target once"):
        MoraConfig(targets=("q", "q_proj"))
