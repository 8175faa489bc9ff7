"""Heads and baselines in a training: where they begin, what is saved, resumed, reported; what is refused."""

import json

import pytest
import torch

from mora.metrics import Metric
from mora.training import Result, TrainConfig, load_run
from mora.training.describe import identity
from tests.training import fakes
from tests.training.test_resume import same, stop_at
from tests.training.test_trainer import events

FIELDS = dict(epochs=2, batch=8, head="prototypes", missing_embedding="learned", dropout=0.3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads") / "run"
    trainer = fakes.trainer(folder, **FIELDS)
    return trainer, trainer.fit(), folder


def test_a_stopped_run_ends_in_the_same_bits(whole, tmp_path):
    _, _, folder = whole
    stop_at(fakes.trainer(tmp_path / "broken", checkpoint_minutes=1e-4, **FIELDS), 7)
    fakes.trainer(tmp_path / "broken", checkpoint_minutes=1e-4, **FIELDS).fit(resume=True)
    same(folder, tmp_path / "broken")


def test_it_comes_back_as_it_was(whole):
    trainer, result, folder = whole
    run = load_run(folder, backbone=fakes.backbone())
    state = run.model.head_state()
    assert {"prototypes", "center", "bias", "log_scale", "missing.image", "missing.text"} == {*state}
    assert all(torch.equal(tensor, trainer.model.head_state()[name]) for name, tensor in state.items())
    assert (run.config["head"], run.config["missing_embedding"]) == ("prototypes", "learned")
    assert result.parameters == sum(p.numel() for p in run.model.parameters() if p.requires_grad)


def test_scores_by_pattern_add_up(whole):
    """In result.json, best/result.json, metrics.jsonl and the log; the mixture is their mean over rows."""
    _, result, folder = whole
    assert Result.read(folder).patterns == result.patterns
    assert json.loads((folder / "best/result.json").read_text())["patterns"] == result.patterns["validation"]
    assert events(folder, "test")[0]["patterns"] == result.patterns["test"]
    assert "(complete " in (folder / "train.log").read_text()
    for split, figures in (("validation", result.validation), ("test", result.test)):
        found = result.patterns[split]
        assert [*found] == ["complete", "image only", "text only"]
        assert sum(own["rows"] for own in found.values()) == 15
        assert sum(own["rows"] * own["accuracy"] for own in found.values()) == pytest.approx(15 * figures["accuracy"])


def test_results_of_earlier_versions_are_read(whole, tmp_path):
    _, result, folder = whole
    stored = json.loads((folder / "result.json").read_text())
    del stored["patterns"]
    (tmp_path / "result.json").write_text(json.dumps(stored))
    assert Result.read(tmp_path).patterns == {} and Result.read(tmp_path).test == result.test


def test_runs_of_earlier_versions_go_on(whole):
    """What the new fields say by default was so before them: a config.json without them is the same run."""
    now = TrainConfig(data="rows", out="run").to_dict()
    before = {name: value for name, value in now.items() if name not in ("head", "missing_embedding")}
    assert identity({"train": now}) == identity({"train": before})
    assert identity({"train": {**now, "head": "prototypes"}}) != identity({"train": before})


def test_prototypes_begin_at_the_class_means_of_every_pattern(tmp_path):
    trainer = fakes.trainer(tmp_path / "run", head="prototypes", missing_embedding="zero", missing="none", epochs=1)
    stop_at(trainer, 0)
    head, rows = trainer.model.head, trainer.splits["train"].inputs
    image, text = (torch.stack([rows[i][name] for i in range(len(rows))]) for name in ("image", "text"))
    with torch.no_grad():
        parts = trainer.model.model.eval().encode_image(image), trainer.model.model.encode_text(text)
    labels = rows.dataset.labels()
    for place, (one, two) in enumerate(((1, 0), (0, 1), (1, 1))):
        features = torch.cat([one * parts[0], two * parts[1]], dim=1)
        means = torch.stack([features[labels == c].mean(0) for c in range(3)]) - features.mean(0)
        torch.testing.assert_close(head.prototypes[place].detach(), means, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(head.center[place].detach(), features.mean(0), rtol=1e-4, atol=1e-5)


def test_zero_shot_is_cosine_to_the_names(tmp_path):
    trainer = fakes.trainer(tmp_path / "run", method="zero-shot")
    result = trainer.fit()
    assert (result.best_epoch, result.epochs, result.parameters) == (0, 0, 0)
    run = load_run(tmp_path / "run", backbone=fakes.backbone())
    rows, clip = trainer.splits["test"].inputs, run.model.model
    batch = {name: torch.stack([rows[i][name] for i in range(len(rows))]) for name in rows[0]}
    with torch.no_grad():
        names = torch.nn.functional.normalize(clip.encode_text(run.tokenize([*fakes.CLASSES])), dim=-1)
        image, text = clip.encode_image(batch["image"], normalize=True), clip.encode_text(batch["text"], normalize=True)
    there = torch.stack([batch["image_present"], batch["text_present"]]).float()[..., None]
    mean = (image * there[0] + text * there[1]) / there.sum(0)
    metric = Metric("accuracy", 3, False)
    metric.update(mean @ names.T, batch["label"])
    assert result.test == pytest.approx(metric.compute())
    assert fakes.trainer(tmp_path / "run", method="zero-shot").fit(resume=True) == Result.read(tmp_path / "run")


def test_what_zero_shot_cannot_do_is_named(tmp_path):
    numbered = fakes.splits()
    for rows in numbered.values():
        rows.classes = ("0", "1", "2")
    with pytest.raises(ValueError, match="method: got 'zero-shot' on rows, whose classes have no names"):
        fakes.trainer(tmp_path / "run", numbered, method="zero-shot")
    for field, value in (("head", "prototypes"), ("missing_embedding", "zero")):
        with pytest.raises(ValueError, match=f"head, missing_embedding: got '{value}' with method 'zero-shot'"):
            fakes.config(tmp_path / "run", method="zero-shot", **{field: value})


def test_last_block_leaves_what_is_below_to_the_cache(tmp_path):
    console = fakes.Silent()
    fakes.trainer(tmp_path / "run", method="last-block", lr=1e-3, console=console).fit()
    for modality in ("image", "text"):
        assert any(f"{modality}: blocks 0 to 2 of 4 frozen" in line for line in console.lines)
    assert any(line.startswith("cache, train") for line in console.lines)
