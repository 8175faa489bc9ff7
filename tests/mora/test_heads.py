"""Heads that know which modalities a row has, and what stands for a missing embedding: equations, gradients by name."""

import pytest
import torch
import torch.nn.functional as F

import mora
from mora.heads import MISSING_EMBEDDINGS, PatternBias, Prototypes, ZeroShot, classify
from mora.metrics import Metric
from mora.patterns import pattern_index, pattern_name, patterns_of, scores_by_pattern
from mora.savings import Hidden
from mora_kernels.testing import assert_parity
from tests.mora.models import images, open_clip_model, randomise, tokens
from tests.mora.test_your_own import WIDTHS, Three, given, towers

TABLE = {torch.float32: 2e-5, torch.float64: 1e-10}
PRESENT = torch.tensor([[True, True], [True, False], [False, True], [True, True]])
BY_NAME = {"image": PRESENT[:, 0], "text": PRESENT[:, 1]}


def make(head="linear", missing_embedding="substitute"):
    model = randomise(mora.patch(open_clip_model(), dropout=0.0))
    torch.manual_seed(0)
    return mora.MissingModalityClassifier(model, 5, head=head, missing_embedding=missing_embedding)


def logits(classifier, present=PRESENT):
    return classifier(images(4), tokens(4), present[:, 0], present[:, 1])


def test_patterns_of_any_number_of_modalities():
    assert patterns_of(["image", "text"]) == [("image",), ("text",), ("image", "text")]
    found = patterns_of(WIDTHS)
    assert len({*found}) == 7 and found[-1] == tuple(WIDTHS)
    there = torch.tensor([[m in pattern for m in WIDTHS] for pattern in found])
    assert pattern_index(there).tolist() == [*range(7)]
    names = [pattern_name(pattern, [*WIDTHS]) for pattern in found]
    assert names[0] == "image only" and names[2] == "image, text only" and names[-1] == "complete"
    with pytest.raises(ValueError, match="head: got 9 modalities, expected at most 8"):
        patterns_of("abcdefghi")


def test_scores_by_pattern_are_those_of_its_rows():
    answers, labels = torch.eye(3)[[0, 1, 2, 0]], torch.tensor([0, 1, 0, 0])
    found = scores_by_pattern(lambda: Metric("accuracy", 3, False), answers, labels, BY_NAME)
    assert [*found] == ["complete", "image only", "text only"]
    assert [(one["rows"], one["accuracy"]) for one in found.values()] == [(2, 1.0), (1, 1.0), (1, 0.0)]
    found = scores_by_pattern(lambda: Metric("auroc", 2, False), answers[:, :2], labels, BY_NAME)
    assert found["image only"] == {"rows": 1}  # AUROC of one class


def test_a_bias_for_each_pattern():
    """It begins as the linear head, and each pattern's bias gets the gradient of its rows alone."""
    plain, classifier = make(), make("pattern-bias")
    assert_parity("logits", logits(classifier), logits(plain).detach(), TABLE)
    weights = torch.randn(4, 5)
    (logits(classifier) * weights).sum().backward()
    expected = torch.stack([weights[1], weights[2], weights[0] + weights[3]])
    assert_parity("gradient of head.bias", classifier.head.bias.grad, expected, TABLE)


def test_prototypes_are_cosines_of_each_pattern():
    torch.manual_seed(1)
    head = Prototypes(["image", "text"], torch.zeros(3, 6, dtype=torch.float64))
    with torch.no_grad():
        head.center.normal_(), head.bias.normal_()
    features = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    found = classify(head, features, BY_NAME)
    rows = []
    for row, pattern in enumerate(pattern_index(PRESENT).tolist()):
        moved = features[row] - head.center[pattern]
        cosines = F.cosine_similarity(moved[None], head.prototypes[pattern])
        rows.append(cosines * head.log_scale.exp() + head.bias[pattern])
    expected = torch.stack(rows)
    assert_parity("logits", found, expected, TABLE)
    assert float(head.log_scale.detach().exp()) == pytest.approx(1 / 0.07)
    weights, inputs = torch.randn_like(found), dict(head.named_parameters(), features=features)
    ours = torch.autograd.grad((found * weights).sum(), inputs.values())
    theirs = torch.autograd.grad((expected * weights).sum(), inputs.values())
    for name, one, other in zip(inputs, ours, theirs, strict=True):
        assert_parity(f"gradient of {name}", one, other, TABLE)


def test_prototypes_begin_at_class_means():
    head = Prototypes(["image", "text"], torch.zeros(2, 3))
    drawn = head.prototypes.detach().clone()
    rows = torch.tensor([[1.0, 0, 0], [3.0, 0, 0], [0, 2.0, 0]])
    sums, counts = torch.zeros(3, 2, 3), torch.zeros(3, 2)
    sums[0, 0], sums[0, 1], counts[0] = rows[:2].sum(0), rows[2], torch.tensor([2.0, 1.0])
    head.begin(sums, counts, torch.stack([rows.sum(0), torch.zeros(3), rows[0]]), torch.tensor([3.0, 0, 1]))
    mean = rows.mean(0)
    torch.testing.assert_close(head.prototypes[0], torch.stack([rows[:2].mean(0) - mean, rows[2] - mean]))
    assert torch.equal(head.prototypes[1:], drawn[1:]) and torch.equal(head.center[1:], torch.zeros(2, 3))


def test_zero_shot_is_the_mean_over_what_is_there():
    head = ZeroShot({"image": 4, "text": 4}, torch.zeros(3, 8))
    head.classes.copy_(F.normalize(torch.randn(3, 4), dim=-1))
    features = torch.randn(4, 8)
    cosines = torch.stack([F.normalize(part, dim=-1) @ head.classes.T for part in features.split(4, dim=1)])
    expected = torch.stack([cosines[PRESENT[row], row].mean(0) for row in range(4)]) / 0.07
    assert_parity("logits", classify(head, features, BY_NAME), expected, TABLE)
    with pytest.raises(ValueError, match="head: got towers of widths .*expected one width for zero-shot"):
        ZeroShot({"image": 4, "text": 5}, torch.zeros(3, 9))


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("kind", ["learned", "zero"])
def test_what_stands_for_a_missing_embedding(kind, mode):
    """Logits and every gradient: those of the tower of the rows that are there, a vector in the place of the others."""
    classifier = make("pattern-bias", kind).train(mode == "train")
    if kind == "learned":
        alone = {m: classifier.learned[m] for m in classifier.towers}
        for modality, vector in alone.items():  # of the CLIP as it was given
            assert torch.equal(vector.detach(), classifier.embedded_substitute(modality)[0])
    else:
        alone = dict.fromkeys(classifier.towers, torch.zeros(32))
    ours = logits(classifier)
    clip = classifier.model
    parts = [
        torch.where(BY_NAME[m][:, None], embedded, alone[m])
        for m, embedded in (("image", clip.encode_image(images(4))), ("text", clip.encode_text(tokens(4))))
    ]
    theirs = classify(classifier.head, torch.cat(parts, dim=1), BY_NAME)
    assert_parity("logits", ours, theirs, TABLE)
    named = dict(mora.adapter_parameters(clip)) | classifier.own_parameters()
    assert ("missing.image" in named) == (kind == "learned")
    weights = torch.randn_like(ours)
    for name, one, other in zip(
        named,
        torch.autograd.grad((ours * weights).sum(), named.values()),
        torch.autograd.grad((theirs * weights).sum(), named.values()),
        strict=True,
    ):
        assert_parity(f"gradient of {name}", one, other, {torch.float32: 2e-4})


def test_a_batch_without_a_modality_gives_every_adapter_a_gradient():
    classifier = make("prototypes", "learned").train()
    for batch in ({"image": images(2)}, {"text": tokens(2)}, {"image": images(2), "text": tokens(2)}):
        classifier.zero_grad()
        classifier(**batch).square().sum().backward()
        trained = dict(mora.adapter_parameters(classifier.model)) | classifier.own_parameters()
        assert [name for name, p in trained.items() if p.grad is None or not torch.isfinite(p.grad).all()] == []


def test_rows_past_the_frozen_blocks_are_taken_too():
    classifier = make("prototypes", "zero").eval()
    with torch.no_grad():
        image = classifier.prefix("image", images(4))
        found = classifier(Hidden(image.rows, filled=True), tokens(4), PRESENT[:, 0], PRESENT[:, 1])
        assert_parity("logits", found, logits(classifier), TABLE)


@pytest.mark.parametrize("missing_embedding", MISSING_EMBEDDINGS)
@pytest.mark.parametrize("head", ["pattern-bias", "prototypes"])
def test_three_modalities(head, missing_embedding):
    model = Three()
    mora.patch(model, towers=towers(model), dropout=0.0)
    classifier = mora.MissingModalityClassifier(model, 3, head=head, missing_embedding=missing_embedding).eval()
    inputs = given()
    present = {"audio": torch.tensor([True, False, True, False]), "text": torch.tensor([True, True, False, False])}
    together = classifier(inputs=inputs, present=present)
    for row in range(4):
        one = {m: x[row : row + 1] for m, x in inputs.items() if m not in present or bool(present[m][row])}
        assert_parity("logits", classifier(inputs=one), together[row : row + 1], TABLE)
    assert len(classifier.head.bias) == 7


def test_defaults_are_what_they_were():
    """The head is an nn.Linear, drawn as before, and nothing else is trained."""
    classifier = make()
    assert type(classifier.head) is torch.nn.Linear and [*classifier.own_parameters()] == ["head.weight", "head.bias"]
    torch.manual_seed(0)
    expected = torch.nn.Linear(64, 5)
    torch.nn.init.normal_(expected.weight, std=0.02)
    assert torch.equal(classifier.head.weight, expected.weight) and torch.equal(classifier.head.bias, expected.bias)


def test_wrong_words_and_formats_are_named(tmp_path):
    with pytest.raises(ValueError, match="head: got 'cosine', expected one of 'linear', 'pattern-bias'"):
        make("cosine")
    with pytest.raises(ValueError, match="missing_embedding: got 'mean', expected one of 'substitute', 'learned'"):
        make(missing_embedding="mean")
    classifier = make("pattern-bias")
    assert isinstance(classifier.head, PatternBias)
    with pytest.raises(ValueError, match="classifier: got a head of kind PatternBias, expected an nn.Linear"):
        mora.save_official(classifier.model, tmp_path / "best_model.pt", classifier.head)
