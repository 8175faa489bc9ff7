"""Embeddings, pairs, nearest names and heads, against loops written for the test."""

import numpy as np
import pytest
import torch
from torch import nn

import mora
from tests.mora.models import MODELS, embed, images, open_clip_model, randomise, tokens

ROWS = 5
BATCH = {"image": images(ROWS), "text": tokens(ROWS)}
LABELS, PROMPTS = torch.tensor([0, 1, 2, 0, 1]), tokens(3, seed=9)


def cosine(one, other):
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def seen(model, batch=BATCH):
    with torch.no_grad():
        return [part.double().numpy() for part in embed(model, batch["image"], batch["text"])]


def world(name="open_clip"):
    """(classifier on an adapted model, embeddings before, embeddings after, names before, names after)."""
    model = mora.patch(MODELS[name](), last_layers=2)
    randomise(model)
    with mora.disabled(model):
        before, names_before = seen(model), seen(model, {"image": images(3), "text": PROMPTS})[1]
    after, names = seen(model), seen(model, {"image": images(3), "text": PROMPTS})[1]
    return mora.MissingModalityClassifier(model, 3), before, after, names_before, names


@pytest.mark.parametrize("name", ["open_clip", "hugging_face"])
def test_figures_of_a_batch(name):
    model, before, after, names_before, names = world(name)
    found = mora.diagnose(model, BATCH, labels=LABELS, prompts=PROMPTS).behaviour
    for drift, first, last in zip(found.drifts, before, after, strict=True):
        assert drift.rows == ROWS
        assert drift.cosine == pytest.approx(np.mean([cosine(*rows) for rows in zip(first, last, strict=True)]), 1e-4)
        moves = [np.linalg.norm(b - a) / np.linalg.norm(a) for a, b in zip(first, last, strict=True)]
        assert drift.move == pytest.approx(np.mean(moves), rel=1e-4)
    (pair,) = found.pairings
    for (image, text), same, apart in (
        (before, pair.before, pair.other_before),
        (after, pair.after, pair.other_after),
    ):
        every = np.array([[cosine(a, b) for b in text] for a in image])
        assert same == pytest.approx(np.diag(every).mean(), abs=1e-5)
        assert apart == pytest.approx((every.sum() - np.trace(every)) / (ROWS * (ROWS - 1)), abs=1e-5)
    for image, text, share in ((before, names_before, "before"), (after, names, "after")):
        nearest = [max(range(3), key=lambda c: cosine(row, text[c])) for row in image[0]]
        right = np.mean([a == b for a, b in zip(nearest, LABELS.tolist(), strict=True)])
        assert getattr(found.zero_shot, share) == pytest.approx(right)
    weight, at = model.head.weight.detach().double().numpy(), 0
    for head, rows in zip(found.heads, after, strict=True):
        part = weight[:, at : at + rows.shape[1]]
        at += rows.shape[1]
        assert head.norm == pytest.approx(np.sqrt((part**2).sum()), rel=1e-5)
        logits = rows @ part.T
        assert head.reach == pytest.approx(np.sqrt(((logits - logits.mean(0)) ** 2).sum(1).mean()), rel=1e-4)


def test_rows_that_lack_something_are_not_looked_at():
    model, _, after, *_ = world()
    present = {"image": torch.tensor([True, False, True, True, False]), "text": torch.tensor([True] * 4 + [False])}
    found = mora.diagnose(model, BATCH, present=present, labels=LABELS, prompts=PROMPTS).behaviour
    assert [one.rows for one in found.drifts] == [3, 4]
    assert (found.pairings[0].rows, found.zero_shot.rows) == (3, 3)
    assert found.pairings[0].after == pytest.approx(
        np.mean([cosine(after[0][i], after[1][i]) for i in (0, 2, 3)]), 1e-4
    )
    alone = mora.diagnose(model, {"text": BATCH["text"]}).behaviour
    assert not alone.pairings and alone.zero_shot is None and [one.modality for one in alone.drifts] == ["text"]
    assert alone.heads[0].reach is None and alone.heads[1].reach > 0


def test_labels_of_several_classes():
    model, *_ = world()
    every = torch.ones(ROWS, 3)
    assert mora.diagnose(model, BATCH, labels=every, prompts=PROMPTS).behaviour.zero_shot.after == 1.0
    assert mora.diagnose(model, BATCH, labels=0 * every, prompts=PROMPTS).behaviour.zero_shot.after == 0.0


def test_a_model_that_did_not_move_drifts_nowhere():
    model = mora.patch(open_clip_model(), init="identity")
    found = mora.diagnose(model, BATCH, labels=LABELS, prompts=PROMPTS)
    assert all(one.move < 1e-5 and one.cosine > 1 - 1e-6 for one in found.behaviour.drifts)
    assert found.behaviour.zero_shot.before == found.behaviour.zero_shot.after and found.behaviour.heads == ()


class Tower(nn.Module):
    """Widths of their own: embeddings of the two towers cannot be compared."""

    def __init__(self, width):
        super().__init__()
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(width, 2, 2 * width, batch_first=True) for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x.mean(dim=1)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.sound, self.text = Tower(8), Tower(12)


def own_towers():
    def encode(name):
        return lambda model, rows: getattr(model, name)(rows)

    def tower(name, width):
        return mora.Tower(f"{name}.blocks", encode=encode(name), missing=torch.zeros(5, width))

    return {"sound": tower("sound", 8), "text": tower("text", 12)}


def test_towers_of_ones_own():
    torch.manual_seed(0)
    model = mora.patch(Two().eval(), towers=own_towers(), rank=2, last_layers=1)
    start = {name: tensor.clone() for name, tensor in mora.adapter_state_dict(model).items()}
    batch = {"sound": torch.randn(4, 5, 8), "text": torch.randn(4, 5, 12)}
    randomise(model)
    found = mora.diagnose(model, batch, start=start)
    assert [one.modality for one in found.behaviour.drifts] == ["sound", "text"] and not found.behaviour.pairings
    assert all(one.learned_move > 0 for one in found.projections) and "sound.1.q" in str(found)


def test_unpatched_models_are_refused():
    with pytest.raises(ValueError, match=r"model: got a CLIP that is not patched, expected one after mora.patch"):
        mora.diagnose(open_clip_model())
    with pytest.raises(ValueError, match=r"got a MissingModalityClassifier around a CLIP that is not patched"):
        mora.diagnose(mora.MissingModalityClassifier(open_clip_model(), 3))
    with pytest.raises(ValueError, match="model: got dict, expected a patched model"):
        mora.diagnose({})


WRONG = [
    ({"batch": images(2)}, "batch: got Tensor, expected inputs by modality, image, text"),
    ({"batch": {"audio": images(2)}}, "batch: got .*audio.*, expected some of image, text"),
    ({"batch": {"image": images(2), "text": tokens(3)}}, "batch: got .* rows, expected one number of at least 1"),
    ({"batch": BATCH, "present": {"image": torch.ones(5)}}, "present.'image'.: got torch.float32"),
    ({"batch": BATCH, "labels": LABELS}, "labels, prompts: got one of them"),
    ({"batch": BATCH, "labels": LABELS + 9, "prompts": PROMPTS}, "labels: got 9 to 11, expected 0 to 2"),
    ({"batch": BATCH, "labels": LABELS[:2], "prompts": PROMPTS}, "labels: got .2,., expected .5,."),
    ({"batch": {"text": tokens(5)}, "labels": LABELS, "prompts": PROMPTS}, "prompts: got a batch of text"),
]


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_a_batch_that_does_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        mora.diagnose(mora.patch(open_clip_model()), **given)
