"""`mora train --method dcp` on the tiny CLIP: saved, loaded, evaluated, predicted alike; not merged; resumed."""

import json

import pytest
import torch
from PIL import Image

from mora.adapters.prompts import prompts_of
from mora.cli import main
from mora.data.dataset import Dataset
from mora.data.open import open_dataset
from mora.evaluation.embeddings import embed
from mora.evaluation.inspection import inspect_run
from mora.evaluation.predict import predict
from mora.runs.stored import RULES
from mora.training import load_run
from tests.training import fakes

SPLITS = ("train", "train", "validation", "test")
RECIPE = ["--prompt-length", "6", "--prompt-depth", "2", "--epochs", "2", "--batch", "6", "--device", "cpu"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with rows of which every fourth lacks its image and every fourth its text, and a run on them."""
    folder = tmp_path_factory.mktemp("prompts")
    lines = ["image,text,label,split"]
    for number in range(24):
        Image.new("RGB", (16, 16), (10 * number, 255 - 10 * number, 90)).save(folder / f"{number}.png")
        image, text = "" if number % 4 == 1 else f"{number}.png", "" if number % 4 == 2 else f"number {number}"
        lines.append(f"{image},{text},{('even', 'odd')[number % 2]},{SPLITS[number // 6]}")
    (folder / "rows.csv").write_text("\n".join(lines))
    given = [
        "--data",
        str(folder / "rows.csv"),
        "--out",
        str(folder / "run"),
        "--method",
        "dcp",
        "--lr",
        "0.05",
        *RECIPE,
    ]
    assert main(["train", *given]) == 0
    return folder


def test_a_run_comes_back_and_every_way_of_scoring_agrees(place, tmp_path):
    run = load_run(place / "run")
    assert run.config["prompts"] == {"length": 6, "depth": 2} and tuple(prompts_of(run.model.clip).size) == (6, 2)
    rows: Dataset = open_dataset(place / "rows.csv", "test")
    with torch.no_grad():
        expected = torch.cat([whole(run, rows[index]) for index in range(len(rows))])
    (_, found), *_ = embed(run, rows).logits(rows.available())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    accuracy = float((expected.argmax(dim=-1) == rows.labels()).float().mean())
    finished = json.loads((place / "run/result.json").read_text())
    assert finished["test"]["accuracy"] == pytest.approx(accuracy)
    assert finished["parameters"] == sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    given = ["--model", str(place / "run"), "--data", str(place / "rows.csv"), "--device", "cpu"]
    assert main(["evaluate", *given, "--out", str(tmp_path / "scores")]) == 0
    scored = json.loads((tmp_path / "scores/results.json").read_text())["cells"][0]
    assert scored["figures"]["accuracy"] == pytest.approx(accuracy) and scored["kind"] == "none"
    complete = embed(run, rows).logits(torch.zeros(len(rows), dtype=torch.int8))
    assert not torch.allclose(next(complete)[1][0], whole(run, rows[0]._replace(text=None))[0])


def whole(run, sample):
    """Logits [1, C] of one sample by the classifier itself."""
    image = None if sample.image is None else run.preprocess(sample.image)[None]
    return run.model(image, None if sample.text is None else run.tokenize([sample.text]))


def test_it_predicts_is_inspected_and_is_not_merged(place, tmp_path, capsys):
    run = load_run(place / "run")
    answers = [predict(run, **given).answers for given in ({"text": "number 8"}, {"image": place / "8.png"})]
    assert answers[0] != answers[1]
    drift = {one.modality: one for one in inspect_run(place / "run", rows=4).behaviour.drifts}
    assert drift["image"].move > 1e-3 and drift["text"].move > 1e-3
    assert main(["merge", "--model", str(place / "run"), "--out", str(tmp_path / "merged")]) == 2
    assert capsys.readouterr().err.startswith("mora merge: merge: got method 'dcp', whose prompts are no update of")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("method", ["mmp", "dcp"])
def test_a_run_that_was_stopped_ends_in_the_same_bits(tmp_path, monkeypatch, method):
    given = dict(method=method, prompt_length=3, prompt_depth=2, batch=10)
    whole = fakes.trainer(tmp_path / "whole", **given)
    whole.fit()
    stopped = fakes.trainer(tmp_path / "run", **given)
    ended = stopped.end_epoch

    def end_epoch():
        ended()
        raise KeyboardInterrupt

    monkeypatch.setattr(stopped, "end_epoch", end_epoch)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    resumed = fakes.trainer(tmp_path / "run", **given)
    resumed.fit(resume=True)
    for name, tensor in fakes.trained_tensors(whole).items():
        assert torch.equal(tensor, fakes.trained_tensors(resumed)[name]), name
    with pytest.raises(ValueError, match="prompt_length: .* was started with 3, this call has 4"):
        fakes.trainer(tmp_path / "run", **{**given, "prompt_length": 4}).fit(resume=True)


def test_config_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="prompt_length: got 2 for method 'dcp', expected a whole number from 3"):
        fakes.config(tmp_path, method="dcp", prompt_length=2)
    with pytest.raises(ValueError, match="prompt_depth: got 0 for method 'mmp'"):
        fakes.config(tmp_path, prompt_depth=0)


@pytest.mark.parametrize("value", [{"length": 0, "depth": 6}, {"length": 36}, {"length": 36, "depth": 1e9}, [36, 6]])
def test_a_run_folder_of_somebody_else_is_checked(value):
    (rule,) = (rule for rule in RULES if rule.name == "prompts")
    assert not rule.right(value) and rule.right({"length": 36, "depth": 6})
