"""The figures of the protocol, by torchmetrics in float32: accuracy, macro F1, AUROC; mean and spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mora.system.checks import is_whole, one_of
from mora.system.machine import need

KINDS = ("accuracy", "macro_f1", "auroc")  # of labels
RECALL = "recall_at_1"  # of pairs, whatever their labels: `mora.contrast.ranks`
THRESHOLD = 0.5


class Metric:
    """Collects logits and labels of batches and computes the figures of one kind, each a share of 1.

    - "accuracy": top-1 over rows; with it "macro_accuracy", the mean over the classes that occur in the labels.
    - "macro_f1": F1 of each class at sigmoid > 0.5, averaged over the classes (0 for one neither labelled nor
      predicted), every row counted, a movie once per plot as published; with it "micro_f1" and, where groups were
      given, "macro_f1_per_movie": a movie's probabilities are averaged over its rows and it counts once.
    - "auroc": of the softmax probability of class 1; with it "accuracy".

    Counts what this process was given: across processes, gather the rows first.

    Args:
        kind: the headline figure, one of `KINDS`.
        num_classes: C, at least 1; "auroc" needs 2.
        multi_label: whether labels are multi-hot [N, C]; "macro_f1" needs True, the others False.

    Raises:
        ValueError: an argument is out of range or does not fit the kind.
        ImportError: torchmetrics is not installed.
    """

    def __init__(self, kind: str, num_classes: int, multi_label: bool) -> None:
        one_of("kind", kind, KINDS)
        if not is_whole(num_classes) or num_classes < 1:
            raise ValueError(f"num_classes: got {num_classes!r}, expected an int of at least 1")
        if multi_label != (kind == "macro_f1"):
            task, fits = ("multi-label", "'macro_f1'") if multi_label else ("single-label", "'accuracy' or 'auroc'")
            raise ValueError(f"kind: got {kind!r} for a {task} task, expected {fits}")
        if kind == "auroc" and num_classes != 2:
            raise ValueError(f"num_classes: got {num_classes} for 'auroc', expected 2")
        self.kind, self.num_classes, self.multi_label = kind, num_classes, multi_label
        self.parts = build(kind, num_classes)
        self.reset()

    def reset(self) -> None:
        """Forget every row."""
        self.rows = 0
        self.classes_seen = torch.zeros(self.num_classes, dtype=torch.bool)
        self.grouped: list[tuple[Tensor, Tensor, Tensor]] = []
        for part in self.parts.values():
            part.reset()

    def update(self, logits: Tensor, labels: Tensor, groups: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            logits: [B, C], any floating dtype and device.
            labels: int64 [B] in [0, C), or multi-hot [B, C] for multi-label tasks.
            groups: int64 [B]: rows with the same number are one movie. Used by "macro_f1" alone; given for every
                batch or for none.

        Raises ValueError for a wrong shape or label, and for logits that are not finite.
        """
        logits, labels = logits.detach().float().cpu(), labels.detach().cpu()
        self.check(logits, labels, groups)
        self.rows += len(logits)
        if not len(logits):
            return
        if self.kind == "accuracy":
            self.parts["counts"].update(logits.argmax(dim=-1), labels)
        elif self.kind == "auroc":
            self.classes_seen[labels.unique()] = True
            self.parts["auroc"].update(logits.softmax(dim=-1)[:, 1], labels)
            self.parts["accuracy"].update(logits.argmax(dim=-1), labels)
        else:
            probabilities, labels = logits.sigmoid(), labels.long()
            for part in self.parts.values():
                part.update(probabilities, labels)
            if groups is not None:
                self.grouped.append((probabilities, labels, groups.detach().cpu()))

    def compute(self) -> dict[str, float]:
        """Every figure, the headline under the name of the kind.

        Raises ValueError without rows, for "auroc" when the labels hold one class only, and when rows of one movie
        have different labels.
        """
        if not self.rows:
            raise ValueError(f"{self.kind}: got no rows, expected at least one")
        if self.kind == "accuracy":
            counts = self.parts["counts"].compute().double()
            right, support = counts[:, 0], counts[:, 4]
            there = support > 0
            return {
                "accuracy": float((right.sum() / support.sum()).float()),
                "macro_accuracy": float((right[there] / support[there]).mean().float()),
            }
        if self.kind == "auroc" and not bool(self.classes_seen.all()):
            only = int(self.classes_seen.nonzero())
            raise ValueError(
                f"auroc: got labels of class {only} only in {self.rows} rows, expected both classes: the area under "
                "the ROC curve is not defined without positives and negatives"
            )
        figures = {name: float(part.compute()) for name, part in self.parts.items()}
        if self.grouped:
            figures["macro_f1_per_movie"] = self.per_movie()
        return figures

    def per_movie(self) -> float:
        """Macro F1 with each movie counted once, at the mean of its rows' probabilities."""
        probabilities, labels, groups = (torch.cat(columns) for columns in zip(*self.grouped, strict=True))
        if len(groups) != self.rows:
            raise ValueError(f"groups: got {len(groups)} of {self.rows} rows, expected every batch's or none")
        movies, position = groups.unique(return_inverse=True)
        counts = position.bincount().unsqueeze(1)
        mean = torch.zeros(len(movies), self.num_classes).index_add(0, position, probabilities) / counts
        total = torch.zeros(len(movies), self.num_classes, dtype=torch.int64).index_add(0, position, labels)
        if bool(((total != 0) & (total != counts)).any()):
            movie = int(movies[((total != 0) & (total != counts)).any(dim=1)][0])
            raise ValueError(f"labels: rows of group {movie} have different labels, expected those of one movie")
        part = build(self.kind, self.num_classes)["macro_f1"]
        part.update(mean, (total > 0).long())
        return float(part.compute())

    def check(self, logits: Tensor, labels: Tensor, groups: Tensor | None) -> None:
        """Raise ValueError for what cannot be counted."""
        size = len(logits)
        if tuple(logits.shape) != (size, self.num_classes):
            raise ValueError(f"logits: got shape {tuple(logits.shape)}, expected (rows, {self.num_classes})")
        expected = (size, self.num_classes) if self.multi_label else (size,)
        if tuple(labels.shape) != expected:
            raise ValueError(f"labels: got shape {tuple(labels.shape)}, expected {expected}")
        highest = 1 if self.multi_label else self.num_classes - 1
        if size and (float(labels.min()) < 0 or float(labels.max()) > highest):
            found = f"{labels.min()} to {labels.max()}"
            raise ValueError(f"labels: got values from {found}, expected 0 to {highest}")
        if groups is not None and tuple(groups.shape) != (size,):
            raise ValueError(f"groups: got shape {tuple(groups.shape)}, expected ({size},)")
        if not bool(logits.isfinite().all()):
            broken = int((~logits.isfinite()).any(dim=1).sum())
            raise ValueError(f"logits: got NaN or infinity in {broken} of {size} rows, expected finite numbers")


def build(kind: str, num_classes: int) -> dict[str, Any]:
    """The torchmetrics objects of a kind, by the name of what they compute; ImportError where it is absent."""
    classification = need("torchmetrics.classification", "computing metrics")
    here: dict[str, Any] = {"sync_on_compute": False}
    if kind == "accuracy":
        return {"counts": classification.MulticlassStatScores(num_classes, average=None, **here)}
    if kind == "auroc":
        return {"auroc": classification.BinaryAUROC(**here), "accuracy": classification.BinaryAccuracy(**here)}
    return {
        f"{average}_f1": classification.MultilabelF1Score(num_classes, threshold=THRESHOLD, average=average, **here)
        for average in ("macro", "micro")
    }


class Spread(NamedTuple):
    """Mean and sample standard deviation over seeds (0 with one seed), shares of 1."""

    mean: float
    deviation: float

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} ± {100 * self.deviation:.1f}"


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation of a few values."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return Spread(mean, 0.0)
    return Spread(mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1)))
