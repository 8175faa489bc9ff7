"""TrainConfig: presets, precedence, checks, JSON."""

import json
import pathlib

import pytest

import mora
from mora.training import TrainConfig, defaults

NEEDED = dict(data="openmoji", out="run")


@pytest.mark.parametrize(
    ("preset", "recipe"), [("mmimdb", (20, 256, 0.02)), ("food101", (20, 256, 0.02)), ("hateful_memes", (5, 16, 0.1))]
)
def test_presets_are_the_published_recipes(preset, recipe):
    config = TrainConfig.make(preset=preset, **NEEDED)
    assert (config.epochs, config.batch, config.weight_decay) == recipe
    assert config.mora == mora.PRESETS[preset]
    assert (config.lr, config.betas, config.eps, config.warmup, config.seed) == (1e-2, (0.9, 0.98), 1e-8, 0.1, 42)


def test_without_a_preset_adapters_and_head_have_rates_of_their_own_and_mora_starts_as_the_pretrained_model():
    config = TrainConfig.make(**NEEDED)
    assert (config.lr, config.head_lr) == (defaults.LR["mora"], defaults.HEAD_LR)
    assert (config.mora.init, config.mora.alpha) == ("identity", defaults.ADAPTERS["alpha"])
    assert TrainConfig.make(method="lora", **NEEDED).lr == defaults.LR["lora"]
    assert TrainConfig.make(method="linear", lr=1e-3, **NEEDED).head_lr == 1e-3
    assert TrainConfig.make(method="mora-no-specific", **NEEDED).mora.init == "official"
    assert TrainConfig.make(mora=mora.MoraConfig(), **NEEDED).mora == mora.MoraConfig()
    assert TrainConfig.make(lr=0.5, alpha=2.0, init="official", **NEEDED).mora == mora.MoraConfig(alpha=2.0)
    for preset in mora.PRESETS:
        published = TrainConfig.make(preset=preset, **NEEDED)
        assert (published.lr, published.head_lr, published.mora.init) == (1e-2, None, "official")


def test_what_is_given_wins():
    config = TrainConfig.make(preset="hateful_memes", epochs=3, rank=2, targets=["v", "q"], **NEEDED)
    assert (config.epochs, config.batch) == (3, 16)
    assert (config.mora.rank, config.mora.alpha, config.mora.targets) == (2, 0.1, ("q", "v"))
    own = mora.MoraConfig(alpha=0.5)
    assert TrainConfig.make(preset="food101", mora=own, rank=8, **NEEDED).mora == mora.MoraConfig(alpha=0.5, rank=8)


def test_json_round_trip():
    config = TrainConfig.make(
        preset="mmimdb", missing="train=both:0.7,test=image:0.5", rank={"image": 2, "text": 3}, common_rank=2, **NEEDED
    )
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_missing_by_split(tmp_path):
    table = tmp_path / "a=b,c.safetensors"
    table.touch()
    cases = {
        "both:0.7": {"train": "both:0.7", "validation": "both:0.7", "test": "both:0.7"},
        "none": {"train": "none", "validation": "none", "test": "none"},
        "train=both:0.70:0.25, test=image:0.5": {"train": "both:0.7:0.25", "validation": "none", "test": "image:0.5"},
    }
    for given, expected in cases.items():
        assert TrainConfig.make(missing=given, **NEEDED).missing == expected
    for word in ("val", "dev"):  # as files call it
        assert TrainConfig.make(missing=f"{word}=text:0.5", **NEEDED).missing["validation"] == "text:0.5"
    assert TrainConfig.make(missing=str(table), **NEEDED).missing["train"] == str(table)
    given = {"train": str(table), "validation": "text:0.9"}
    assert TrainConfig.make(missing=given, **NEEDED).missing == {**given, "test": "none"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(data=""), "data: got ''"),
        (dict(data=None), "data: got None"),
        (dict(epochs=True), "epochs: got True"),
        (dict(epochs=1.5), "epochs: got 1.5"),
        (dict(batch=0), "batch: got 0"),
        (dict(lr=float("nan")), "lr: got nan, expected a number above 0"),
        (dict(lr="0.1"), "lr: got '0.1'"),
        (dict(head_lr=-1), "head_lr: got -1"),
        (dict(betas=(0.9,)), "betas: got"),
        (dict(betas=(0.9, 1.1)), "betas: got 1.1, expected a number between 0 and 1"),
        (dict(weight_decay=-0.1), "weight_decay: got -0.1, expected a number of at least 0"),
        (dict(warmup=2), "warmup: got 2"),
        (dict(missing="train=both:0.7,train=image:0.5"), "missing: got .*expected each split once"),
        (dict(missing={"held-out": "both:0.5"}), "missing: got 'held-out', expected each of 'train'"),
        (dict(missing={"dev": "both:0.5", "val": "both:0.5"}), "missing: got 'val', expected each of .* once"),
        (dict(missing=0.7), "missing: got 0.7"),
        (dict(missing="both:x"), "missing: got 'both:x'"),
        (dict(mora={"rank": 4}), "mora: got dict, expected a MoraConfig"),
        (dict(variant="no-gram"), "variant: got 'no-gram', expected method='mora-no-gram' instead"),
        (dict(alpha=0), "alpha: got 0"),
        (dict(metric="f1"), "metric: got 'f1'"),
        (dict(on_broken="white"), "on_broken: got 'white'"),
        (dict(checkpoint_minutes=0), "checkpoint_minutes: got 0"),
        (dict(preset="coco"), "preset: got 'coco'"),
    ],
)
def test_a_wrong_field_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig.make(**{**NEEDED, **fields})


def test_paths_are_taken():
    config = TrainConfig.make(data=pathlib.Path("a.csv"), out=pathlib.Path("run"))
    assert (config.data, config.out) == ("a.csv", "run")
