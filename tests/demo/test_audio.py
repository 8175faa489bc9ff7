"""`mora demo --audio`: on a made copy of the stamps, in seconds; tables and pictures from made rows."""

import json
import math

import pytest
import torch

pytest.importorskip("open_clip")
pytest.importorskip("soundfile")
pytest.importorskip("accelerate")

from mora.cli import main
from mora.demo import subsets
from mora.demo.hearing import Part, Recipe, augment, centred, contrast, pretrain, retrieval
from mora.demo.recordings import tower
from mora.metrics import spread
from mora.tiny.audio import BANDS, FRAMES, SILENCE
from tests.data import stamps, synthetic


def made(count=12, stamps_of=4, seed=0):
    """Recordings that are a band of energy where their stamp says."""
    torch.manual_seed(seed)
    place = torch.arange(count) % stamps_of
    features = torch.full((count, 1, FRAMES, BANDS), SILENCE) + 0.1 * torch.rand(count, 1, FRAMES, BANDS)
    for row, stamp in enumerate(place.tolist()):
        features[row, 0, 20:120, 8 + 12 * stamp : 16 + 12 * stamp] = 1.5
    torch.manual_seed(1)
    texts, images = (torch.nn.functional.normalize(torch.randn(stamps_of, 128), dim=1) for _ in range(2))
    return Part(features.half(), place, texts, images, torch.eye(stamps_of, dtype=torch.bool))


def test_the_tower_learns_what_recordings_of_a_stamp_share():
    lines, parts = [], (made(), made(8, seed=3))
    before = torch.get_rng_state()
    _, found = pretrain(*parts, Recipe(epochs=16, batch=12, rate=3e-3), lines.append)
    assert torch.equal(torch.get_rng_state(), before)
    losses = [float(line.rpartition(" ")[2]) for line in lines]
    assert len(losses) == 16 and losses[-1] < 0.7 * losses[0]
    assert found["validation"]["text at 1"] == 1.0 and found["validation"]["chance at 1"] == 0.25


def test_the_loss_is_that_of_the_rows_own():
    logits = torch.tensor([[2.0, 0.0, 1.0]])
    own = torch.tensor([[True, False, True]])
    total = sum(math.exp(value) for value in (2.0, 0.0, 1.0))
    assert float(contrast(logits, own)) == pytest.approx(-math.log((math.exp(2) + math.exp(1)) / total), rel=1e-5)


def test_retrieval_counts_equal_texts_as_one():
    part = made(4)
    part = Part(part.features, part.stamps, part.texts, part.images, part.same | part.same.roll(1, 0))
    own = centred(part.texts, part.texts)

    class Right(torch.nn.Module):
        def forward(self, features):
            return own

    assert retrieval(Right(), part, part)["text at 1"] == 1.0


def test_augmented_features_are_of_the_same_kind():
    features = made().features.float()
    torch.manual_seed(0)
    moved = augment(features)
    assert moved.shape == features.shape and moved.isfinite().all()
    assert moved.min() >= SILENCE - 1e-3 and not torch.equal(moved, features)


@pytest.fixture
def cached(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_the_command_on_a_made_copy(cached, capsys):
    package, out = stamps.package(cached / "package"), cached / "out"
    command = ["demo", "--audio", "--data", str(package), "--out", str(out), "--seeds", "1", "--epochs", "1"]
    assert main([*command, "--methods", "mora", "--jobs", "1", "--tower-epochs", "1"]) == 0
    shown = capsys.readouterr().out
    assert "| image, text, audio |" in shown and "audio tower: epoch 1 of 1" in shown
    rows = json.loads((out / "audio.json").read_text())
    assert {run["method"] for run in rows["runs"]} == {"mora"}
    assert [one["rows"] for one in rows["runs"][0]["results"]] == [9] * 13
    assert rows["runs"][0]["parameters"] > 0
    assert "package" in rows["settings"]["data"] and str(cached) not in rows["settings"]["data"]
    assert (out / "audio.png").read_bytes().startswith(b"\x89PNG")
    lines = []
    path, found = tower(out / "stamps" / "stamps.csv", Recipe(epochs=1), lines.append)
    assert lines == [f"audio tower: found in {path}"] and found["train"] == rows["tower"]["train"]


def test_what_does_not_fit_is_refused(cached, capsys):
    (cached / "a.png").write_bytes(synthetic.picture(0, 0, "PNG"))
    lines = [f"a.png,{name},{name},{split}" for split in ("train", "val") for name in "xy"]
    (cached / "plain.csv").write_text("\n".join(["image,text,label,split", *lines, ""]))
    for arguments, message in (
        (["--audio"], "got one of --audio and --data, expected both"),
        (["--data", "x"], "got one of --audio and --data, expected both"),
        (["--audio", "--data", "x", "--rank", "2"], "rank: got it with --audio"),
        (
            ["--audio", "--data", str(cached / "plain.csv"), "--out", str(cached / "o")],
            "without audio, expected image, text and audio",
        ),
        (["--audio", "--data", str(cached), "--out", str(cached / "o")], "expected the unpacked package"),
    ):
        assert main(["demo", *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.fixture
def rows():
    kinds = [("none", 0.0), ("text+audio", 1.0), ("image", 1.0), ("any", 0.3)]
    scores = {"frozen": [0.5, 0.4, 0.3, 0.2], "mora": [0.6, 0.4, 0.2, 0.3]}
    runs = [
        {
            "method": method,
            "seed": seed,
            "results": [
                {"kind": kind, "rate": rate, "rows": 10, "figures": {"accuracy": value + 0.1 * seed}}
                for (kind, rate), value in zip(kinds, values, strict=True)
            ],
        }
        for method, values in scores.items()
        for seed in (0, 1)
    ]
    figures = {"recordings": 9, "stamps": 3, "text at 1": 0.5, "text at 5": 1, "image at 1": 0.25, "image at 5": 0.5}
    figures |= {"chance at 1": 0.3333, "chance at 5": 1.0}
    heard = {"recipe": {"epochs": 2}, "seconds": 3.0, "train": figures, "validation": figures}
    settings = {"methods": ["frozen", "mora"], "seeds": 2, "missing": "any:0.3"}
    return {"command": "mora demo --audio", "versions": {}, "settings": settings, "tower": heard, "runs": runs}


def test_the_table_says_what_is_there_and_the_best_of_each_row(rows):
    found = subsets.table(rows)
    assert [row[0] for row in found.rows] == ["image", "text, audio", "image, text, audio"]
    assert found.rows[0][1:] == ["45.0 ± 7.1", "45.0 ± 7.1"] and found.rows[2][2] == "65.0 ± 7.1"
    assert found.best == {(0, 1), (0, 2), (1, 1), (2, 2)}
    assert subsets.values(rows, "mora", "any", 0.3) == pytest.approx([0.3, 0.4])
    gap = subsets.paired(rows, "mora", "frozen", ["none", "image"])
    assert (gap.mean, gap.deviation) == pytest.approx((0.0, 0.0)) and gap == spread([0.0, 0.0])
    assert subsets.said(rows)[0].startswith("MoRA minus frozen + head, paired by seed, points: +0.0 with image, ")
    assert subsets.heard(rows).rows[0] == ["train", "9", "3", "50.0", "100.0", "25.0", "50.0", "33.3 / 100.0"]
    report = subsets.markdown(rows)
    assert "10 test rows, trained with any:0.3" in report and subsets.draw(rows).startswith(b"\x89PNG")
