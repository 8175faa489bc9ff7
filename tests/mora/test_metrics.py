"""Figures against hand-made oracles: counts by Python loops, pairs for AUROC."""

import itertools

import pytest
import torch

from mora.metrics import Metric

pytest.importorskip("torchmetrics")


def fed(kind, classes, logits, labels, groups=None, parts=3):
    metric = Metric(kind, classes, kind == "macro_f1")
    rows = torch.arange(len(logits))
    for chunk in rows.chunk(parts):
        metric.update(logits[chunk], labels[chunk], None if groups is None else groups[chunk])
    return metric.compute()


def f1_by_hand(predicted, labels):
    scores = []
    for c in range(len(labels[0])):
        true = sum(p[c] and y[c] for p, y in zip(predicted, labels, strict=True))
        wrong = sum(p[c] != y[c] for p, y in zip(predicted, labels, strict=True))
        scores.append(2 * true / (2 * true + wrong) if true or wrong else 0.0)
    return sum(scores) / len(scores)


def test_accuracy_over_rows_and_over_the_classes_that_occur():
    predicted, labels = [0, 0, 2, 1, 3, 0], [0, 0, 2, 2, 0, 0]
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), 4).half() - 0.3
    assert fed("accuracy", 4, logits, torch.tensor(labels)) == pytest.approx(
        {"accuracy": 4 / 6, "macro_accuracy": (3 / 4 + 1 / 2) / 2}
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_macro_f1_counts_pairs_and_movies(dtype):
    torch.manual_seed(0)
    groups = torch.tensor([4, 4, 4, 9, 9, 2, 7, 7, 7, 7])
    label_of = {g: torch.rand(5) > 0.5 for g in (2, 4, 7, 9)}
    for label in label_of.values():
        label[4] = False
    labels = torch.stack([label_of[int(g)] for g in groups]).float()
    logits = torch.randn(10, 5).to(dtype)
    logits[:, 4] = -1  # a class neither labelled nor predicted
    found = fed("macro_f1", 5, logits, labels, groups)
    assert found["macro_f1"] == pytest.approx(f1_by_hand((logits > 0).tolist(), labels.bool().tolist()))
    movies = [
        [sum(p) / len(p) > 0.5 for p in zip(*logits[groups == g].float().sigmoid().tolist(), strict=True)]
        for g in label_of
    ]
    assert found["macro_f1_per_movie"] == pytest.approx(f1_by_hand(movies, [v.tolist() for v in label_of.values()]))
    assert "macro_f1_per_movie" not in fed("macro_f1", 5, logits, labels)


def test_f1_takes_logits_between_0_and_1_for_logits():
    logits = torch.tensor([[0.2, 0.3], [0.4, -0.1]])
    assert fed("macro_f1", 2, logits, torch.tensor([[1.0, 1], [1, 0]])) == {"macro_f1": 1.0, "micro_f1": 1.0}


def test_auroc_is_the_share_of_ordered_pairs():
    torch.manual_seed(1)
    logits = torch.randn(30, 2)
    logits[3] = logits[4]
    labels = torch.randint(0, 2, (30,))
    labels[3], labels[4] = 0, 1
    scores = logits.softmax(-1)[:, 1]
    pairs = list(itertools.product(scores[labels == 1].tolist(), scores[labels == 0].tolist()))
    area = sum((p > n) + 0.5 * (p == n) for p, n in pairs) / len(pairs)
    found = fed("auroc", 2, logits, labels)
    assert found["auroc"] == pytest.approx(area, abs=1e-6)
    assert found["accuracy"] == pytest.approx(float((logits.argmax(-1) == labels).float().mean()))


def test_reset_forgets():
    metric = Metric("auroc", 2, False)
    metric.update(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))
    metric.reset()
    with pytest.raises(ValueError, match="auroc: got no rows"):
        metric.compute()
    metric.update(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 0]))
    assert metric.compute() == {"auroc": 1.0, "accuracy": 1.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("f2", 2, False), "kind: got 'f2', expected one of 'accuracy', 'macro_f1', 'auroc'"),
        (("accuracy", 0, False), "num_classes: got 0, expected an int of at least 1"),
        (("accuracy", 3, True), "kind: got 'accuracy' for a multi-label task, expected 'macro_f1'"),
        (("macro_f1", 3, False), "kind: got 'macro_f1' for a single-label task, expected 'accuracy' or 'auroc'"),
        (("auroc", 3, False), "num_classes: got 3 for 'auroc', expected 2"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Metric(*arguments)


@pytest.mark.parametrize(
    ("kind", "logits", "labels", "groups", "message"),
    [
        ("accuracy", torch.zeros(2, 3), torch.zeros(2).long(), None, r"logits: got shape \(2, 3\), expected \(rows, 2"),
        ("accuracy", torch.zeros(2, 2), torch.zeros(3).long(), None, r"labels: got shape \(3,\), expected \(2,\)"),
        ("accuracy", torch.zeros(2, 2), torch.tensor([0, 2]), None, "labels: got values from 0 to 2, expected 0 to 1"),
        ("accuracy", torch.full((2, 2), torch.nan), torch.tensor([0, 1]), None, "NaN or infinity in 2 of 2 rows"),
        ("macro_f1", torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(3), r"groups: got shape \(3,\), expected \(2"),
    ],
)
def test_wrong_batches_are_named(kind, logits, labels, groups, message):
    with pytest.raises(ValueError, match=message):
        Metric(kind, 2, kind == "macro_f1").update(logits, labels, groups)


def test_what_cannot_be_computed_says_why():
    metric = Metric("auroc", 2, False)
    metric.update(torch.randn(3, 2), torch.ones(3).long())
    with pytest.raises(ValueError, match="auroc: got labels of class 1 only in 3 rows, expected both classes"):
        metric.compute()
    metric = Metric("macro_f1", 2, True)
    metric.update(torch.zeros(2, 2), torch.tensor([[1, 0], [1, 1]]), torch.tensor([5, 5]))
    with pytest.raises(ValueError, match="labels: rows of group 5 have different labels"):
        metric.compute()
    metric.update(torch.zeros(2, 2), torch.tensor([[1, 0], [1, 1]]))
    with pytest.raises(ValueError, match="groups: got 2 of 4 rows"):
        metric.compute()
