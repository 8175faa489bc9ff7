"""A handful of open_clip's configurations of every kind, and the table they make; the census itself is a command."""

import json

import pytest
from torch import nn

from mora.census.__main__ import main
from mora.census.check import STREAM, Row, looked_at
from mora.census.classes import CLASSES, OTHERS, STREAMS
from mora.census.decoders import DECODERS
from mora.census.shrink import built
from mora.census.table import BEGIN, END, markdown, text, written

ADAPTED = {
    "ViT-B-32": ("open_clip image", "open_clip text"),
    "ViT-B-16-SigLIP": ("timm vision transformer", "open_clip text"),
    "EVA01-g-14": ("timm vision transformer", "open_clip text"),
    "EVA02-B-16": ("timm vision transformer", "open_clip text"),
    "PE-Core-T-16-384": ("timm vision transformer", "open_clip text"),
    "ViTamin-S": ("timm vision transformer", "open_clip text"),
    "vit_relpos_medium_patch16_cls_224": ("timm vision transformer", "open_clip text"),
    "MobileCLIP-S1": ("timm image", "open_clip text"),
    "swin_base_patch4_window7_224": ("timm image", "open_clip text"),
    "RN50": ("open_clip ResNet", "open_clip text"),
}


@pytest.mark.parametrize("name", ADAPTED)
def test_every_kind_of_configuration_is_adapted(name):
    row = looked_at(name)
    assert row.adapted, row.failed
    assert tuple(row.towers.values()) == ADAPTED[name]
    whole = row.towers["image"] in ("timm image", "open_clip ResNet")
    assert ("image: blocks 0 to 0 of 2 frozen" in row.savings) != whole
    assert row.mlp == ("text" if name in ("RN50", "MobileCLIP-S1", "EVA02-B-16") else "image and text")


@pytest.mark.parametrize("name", sorted({*CLASSES} - {*OTHERS, *STREAMS, *DECODERS, "AlignModel"}))
def test_every_class_of_transformers_is_adapted(name):
    row = looked_at(name)
    assert row.adapted, row.failed


@pytest.mark.parametrize("name", [*STREAMS, "LlavaForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"])
def test_models_of_one_stream_are_adapted_and_save_nothing(name):
    row = looked_at(name)
    assert row.adapted, row.failed
    assert row.savings == STREAM


@pytest.mark.parametrize("name", OTHERS)
def test_models_whose_towers_read_each_other_are_named(name):
    row = looked_at(name)
    assert not row.adapted and row.failed.startswith(f"recognise: model: got a {name} with ")


def test_a_model_without_attention_is_a_row_that_says_why():
    row = looked_at("convnext_tiny")
    assert not row.adapted and row.towers["image"] == "timm image"
    assert row.failed.startswith("model: the image tower is timm's ConvNeXt, which has no attention with q, k, v to ad")
    assert row.failed.endswith("; every check passes with it frozen") and "last block for the pooled row" in row.savings


def silent(name):
    """A model whose image tower embeds every image alike."""
    model = built(name)
    model.visual.head = nn.Sequential(model.visual.head, nn.Linear(model.visual.head[-1].out_features, 4).double())
    nn.init.zeros_(model.visual.head[1].weight)
    return model


def test_what_goes_wrong_is_named_by_the_check_that_saw_it():
    row = looked_at("vit_medium_patch16_gap_256", silent)
    assert row.failed == "identity: image embeds every input alike"
    assert looked_at("no such configuration").failed.startswith("build: ")


ROWS = [
    Row("a-1", True, {"image": "own", "text": "own"}, "image: all", "image and text", "", 1.0),
    Row("a-2", True, {"image": "own", "text": "own"}, "image: all", "image and text", "", 1.0),
    Row("b_1", False, {"image": "timm", "text": "own"}, "", "", "patch: no attention", 1.0),
]


def test_the_table():
    table = text(ROWS)
    assert "2 of 3 configurations of open_clip are adapted." in table and "1 x patch: no attention" in table
    page = written("# Models\n\nWords.\n", markdown(ROWS))
    assert page.startswith("# Models\n\nWords.\n")
    assert "| own and own | yes | image and text | 2: a-1, a-2 | image: all |" in page
    assert written(page, "other") == f"# Models\n\nWords.\n\n{BEGIN}\nother\n{END}\n"


def test_rows_are_found_once(tmp_path, capsys):
    rows, page = tmp_path / "rows.jsonl", tmp_path / "models.md"
    arguments = ["--only", "convnext_tin*", "--rows", str(rows), "--write", str(page)]
    assert main(arguments) == 0
    stored = rows.read_text()
    assert json.loads(stored)["name"] == "convnext_tiny" and "convnext_tiny" in page.read_text()
    assert main(arguments) == 0 and rows.read_text() == stored
    assert "0 of 1 configurations of open_clip are adapted." in capsys.readouterr().out
