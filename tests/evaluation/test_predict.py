"""`mora predict`: the classifier's own answer, what was absent, and its refusals."""

import json

import pytest
import torch
from PIL import Image

from mora.cli import main
from mora.evaluation.predict import predict
from mora.runs.run import load_run
from tests.evaluation.fakes import write_run


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {metric: write_run(folder / metric, metric=metric) for metric in ("accuracy", "macro_f1")}


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "red.png"
    Image.new("RGBA", (80, 50), (200, 30, 30, 120)).save(path)
    return path


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
@pytest.mark.parametrize("missing", ["none", "text", "image"])
def test_the_answer_is_the_classifier_s(folders, picture, metric, missing):
    run = load_run(folders[metric])
    image = None if missing == "image" else picture
    text = None if missing == "text" else "a ripe apple"
    found = predict(run, image, text)
    assert found.missing == missing
    assert found.multi_label == (metric == "macro_f1")
    on_white = Image.alpha_composite(Image.new("RGBA", (80, 50), "white"), Image.open(picture)).convert("RGB")
    pixels = None if image is None else run.preprocess(on_white)[None]
    with torch.no_grad():
        logits = run.model(pixels, None if text is None else run.tokenize([text]))[0]
    expected = logits.sigmoid() if found.multi_label else logits.softmax(-1)
    assert {answer.name: answer.probability for answer in found.answers} == pytest.approx(
        dict(zip(run.classes, expected.tolist(), strict=True))
    )
    assert [a.probability for a in found.answers] == sorted((a.probability for a in found.answers), reverse=True)
    chosen = [a.name for a in found.answers if a.chosen]
    if found.multi_label:
        assert sorted(chosen) == sorted(c for c, p in zip(run.classes, expected, strict=True) if p > 0.5)
    else:
        assert chosen == [run.classes[int(expected.argmax())]]


def test_pil_images_and_blank_texts(folders, picture):
    run = load_run(folders["accuracy"])
    assert predict(run, Image.open(picture), " ") == predict(run, picture)
    assert len(predict(run, text="fig", top=2).answers) == 2


def test_the_command(folders, picture, capsys):
    assert main(["predict", "--model", str(folders["accuracy"]), "--image", str(picture), "--top", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "the text is absent: the empty text stands in"
    assert lines[1].startswith("* ") and lines[1].endswith(" %")
    assert lines[-1] == "3 of 4 classes"
    assert main(["predict", "--model", str(folders["macro_f1"]), "--text", "apple pie"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("the image is absent: a white image stands in")
    assert "above 50 %" in out


def test_json(folders, picture, capsys):
    arguments = ["--image", str(picture), "--text", "a pear", "--json", "--top", "2"]
    assert main(["predict", "--model", str(folders["accuracy"]), *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["missing"] == "none"
    assert [set(answer) for answer in found["answers"]] == [{"name", "probability", "chosen"}] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "image, text: got neither, expected --image, --text or both"),
        (["--text", "  "], "image, text: got neither"),
        (["--image", "nowhere.png"], "image: got nowhere.png, expected an image file"),
        (["--text", "x", "--top", "0"], "top: got 0, expected a whole number of at least 1"),
        (["--text", "x", "--device", "abacus"], "device: got 'abacus'"),
    ],
)
def test_refusals_are_one_line(folders, capsys, arguments, message):
    assert main(["predict", "--model", str(folders["accuracy"]), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"mora predict: {message}")
    assert error.count("\n") == 1


def test_an_unreadable_image_is_named(folders, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 not a picture")
    assert main(["predict", "--model", str(folders["accuracy"]), "--image", str(tmp_path / "broken.jpg")]) == 2
    assert f"{tmp_path / 'broken.jpg'}: the image cannot be read" in capsys.readouterr().err
    assert main(["predict", "--model", str(tmp_path), "--text", "x"]) == 2
    assert "expected a run folder of mora train" in capsys.readouterr().err
