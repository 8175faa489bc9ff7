"""A run of three modalities from end to end: rows of every subset; two modalities go the same way as before."""

import json
from dataclasses import replace

import pytest
import torch

from mora.data import Presence, draw_table, per_sample, presence_of
from mora.data.modalities import register, unregister
from mora.data.tables import Missing
from mora.evaluation.embeddings import embed
from mora.evaluation.grid import evaluate, grid
from mora.evaluation.predict import predict
from mora.evaluation.tables import by_pattern
from mora.export.merge import merge_run, read_plain
from mora.runs.run import load_run
from mora.towers import towers_of
from mora.training import Backbone, Trainer
from mora.training.batches import Inputs
from mora_kernels.testing import assert_parity
from tests.mora.models import open_clip_model
from tests.training import fakes, three

TABLE = {torch.float32: 2e-5}
SUBSETS = {
    "complete", "image only", "text only", "sketch only", "image, text only", "image, sketch only", "text, sketch only",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def registered():
    yield register(three.Sketches())
    unregister("sketch")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder, console = tmp_path_factory.mktemp("three") / "run", fakes.Silent()
    result = three.trainer(folder, console=console).fit()
    return folder, result, console


def loaded(folder):
    return load_run(folder, backbone=three.backbone())


def test_a_run_has_figures_of_every_subset(finished):
    folder, result, console = finished
    assert set(result.patterns["test"]) == SUBSETS and sum(p["rows"] for p in result.patterns["test"].values()) == 21
    assert any("train 42 (18 without image, 18 without text, 18 without sketch)" in line for line in console.lines)
    config = json.loads((folder / "config.json").read_text())
    assert config["data"]["modalities"] == list(three.MODALITIES)
    assert config["tables"]["train"]["sketch missing"] == 0


def test_an_interrupted_run_ends_as_a_whole_one(finished, tmp_path, monkeypatch):
    _, result, _ = finished
    out = tmp_path / "run"
    stopped = three.trainer(out)
    monkeypatch.setattr(stopped, "finish", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    again = three.trainer(out).fit(resume=True)
    assert (again.test, again.validation, again.patterns) == (result.test, result.validation, result.patterns)


def test_every_way_of_scoring_agrees(finished):
    run, data = loaded(finished[0]), three.splits()["test"]
    inputs = Inputs(data, data.present(), run.preparing)
    expected = []
    for index in range(len(data)):
        one = inputs[index]
        with torch.no_grad():
            given = {name: one[name][None] for name in three.MODALITIES}
            present = {name: one[f"{name}_present"][None] for name in three.MODALITIES}
            expected.append(run.model(inputs=given, present=present)[0])
    found = torch.cat([part for _, part in embed(run, data, batch=4).logits(data.present())])
    assert_parity("logits", found, torch.stack(expected), TABLE)
    accuracy = float((found.argmax(dim=-1) == data.labels()).float().mean())
    assert evaluate(run, data).value == pytest.approx(accuracy) == finished[1].test["accuracy"]
    for index in (3, 9, 15):  # rows without an image: those of fakes are tensors
        given = {name: value for name, value in data[index].inputs.items() if value is not None}
        answer = predict(run, given.get("image"), given.get("text"), inputs={"sketch": given.get("sketch")})
        likeliest = expected[index].argmax()
        assert answer.answers[0].name == fakes.CLASSES[likeliest]
        assert answer.missing == (", ".join(m for m in three.MODALITIES if m not in given) or "none")


def test_the_grid_is_every_subset(finished):
    run, data = loaded(finished[0]), three.splits(whole=True)["test"]
    results = grid(run, data)
    assert [result.kind for result in results] == [
        "none", "image", "text", "sketch", "image+text", "image+sketch", "text+sketch",
    ]  # fmt: skip
    assert all(result.rate == 1 and result.seed == 0 for result in results[1:])
    names = ["complete", "text, sketch only", "image, sketch only", "image, text only"]
    assert [next(iter(r.patterns)) for r in results] == [*names, "sketch only", "text only", "image only"]
    assert by_pattern(results) is None  # every condition leaves rows alike
    assert results[4].further == {"sketch": 0} and (results[4].image_missing, results[4].text_missing) == (21, 21)
    drawn = evaluate(run, data, "sketch:0.7,image:0.3", seed=4)
    assert (drawn.further["sketch"], drawn.image_missing, drawn.text_missing) == (14, 6, 0)
    assert drawn.kind == "sketch:0.7,image:0.3" and evaluate(run, data, "both:0.7").kind == "either"


def test_a_merged_model_is_the_adapted_one(finished, tmp_path):
    found = merge_run(loaded(finished[0]), tmp_path / "plain")
    assert found["rows"] == 7 * 8 and found["max_difference"] <= 1e-4 * max(1.0, found["max_logit"])
    about = json.loads((tmp_path / "plain/classifier.json").read_text())
    assert about["library"] == "state_dict" and len(about["patterns"]) == 7
    assert "image, text, sketch" in (tmp_path / "plain/README.md").read_text()
    run = loaded(finished[0])
    plain, given = read_plain(tmp_path / "plain", run, "state_dict"), three.splits(whole=True)["test"][0].inputs
    ready = {name: run.preparing.one(name, value)[None] for name, value in given.items()}
    with torch.no_grad():
        assert_parity("logits", plain(inputs=ready), run.model(inputs=ready), TABLE)


def test_what_training_takes_away_is_what_the_table_says(tmp_path):
    made = three.trainer(tmp_path / "run", three.splits(whole=True), missing="train=sketch:0.7,image:0.3,dev=any:0.6")
    train, validation = made.splits["train"].present, made.splits["validation"].present
    assert train.missing == {"image": 12, "text": 0, "sketch": 29}
    assert int((~validation.mask).sum()) == int(21 * 3 * 0.6) and bool(validation.mask.any(dim=1).all())
    batch = made.splits["train"].inputs[0]
    assert torch.equal(batch["sketch_present"], train["sketch"][0])
    with pytest.raises(ValueError, match="kind: got 'audio', expected one of 'text', 'image', 'both', 'sketch', 'any'"):
        three.trainer(tmp_path / "other", missing="audio:0.5")


def test_data_that_the_model_has_no_tower_for_is_named(tmp_path):
    with pytest.raises(ValueError, match="data: threes, train has sketch, which the model has no tower for, expected"):
        fakes.trainer(tmp_path / "run", three.splits(), missing="none")
    bare = three.backbone()
    bare.others.clear()
    with pytest.raises(ValueError, match="backbone: got no preprocessing of sketch, expected one beside image, text"):
        bare.preparing(fakes.tokenizer).check_data("threes", three.MODALITIES)


def test_a_model_of_three_towers_trains_on_two_modalities(tmp_path):
    made = three.trainer(tmp_path / "run", fakes.splits(24), epochs=1)
    assert made.splits["train"].inputs.present.missing == {"image": 0, "text": 0, "sketch": 24}
    assert made.fit().test is not None


class Twice(three.Rows):
    """Rows whose sketch is an image, for a tower that can be cut."""

    def __getitem__(self, index):
        row = super().__getitem__(index)
        sketch = None if row.inputs["sketch"] is None else self.images[index].flip(0)
        return row._replace(inputs={**row.inputs, "sketch": sketch})


def test_rows_past_the_frozen_blocks_of_three_towers_are_kept(tmp_path):
    found = {}
    for cache in ("off", "memory", "disk"):
        clip = open_clip_model()
        towers = towers_of(clip)
        clip.mora_towers = {**towers, "sketch": replace(towers["image"], modality="sketch")}
        backbone = Backbone.of(clip, fakes.preprocess, fakes.tokenizer, "twice", others={"sketch": fakes.preprocess})
        fields = {"cache": cache, "cache_folder": str(tmp_path / "rows") if cache == "disk" else None}
        given = fakes.config(tmp_path / cache, missing="train=any:0.3", method="linear", **fields)
        data = {name: Twice(21, name, seed) for seed, name in enumerate(("train", "validation"))}
        made = Trainer(given, backbone, data, fakes.Silent())
        found[cache] = made.fit().validation, fakes.trained_tensors(made)
        assert set(made.engine.cached) == (set() if cache == "off" else {"train", "validation"})
        if cache != "off":
            batch = made.engine.cached["train"].__getitems__([0, 5])
            assert {"image_rows", "text_rows", "sketch_rows", "sketch_present"} <= set(batch)
    for figures, tensors in (found["memory"], found["disk"]):
        assert figures == pytest.approx(found["off"][0])
        for name, tensor in tensors.items():
            assert_parity(name, tensor, found["off"][1][name], TABLE)


def test_the_code_of_two_modalities_is_the_presence_of_two():
    data = fakes.rows(30, natural=True)
    table = draw_table(data, Missing("both", 0.7), 5)
    codes = per_sample(table, data)
    assert torch.equal(codes, presence_of(table, data).codes())
    found = Presence.of_codes(codes)
    assert torch.equal(found["image"], codes != 2) and torch.equal(found["text"], codes != 1)
