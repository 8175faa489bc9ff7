"""What training and `mora data check` ask of data before a first step: one place, so that neither knows more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mora.data.dataset import Dataset
from mora.metrics import RECALL
from mora.system.messages import listed, printable

NEEDED = ("train", "validation")


def refuse_incomplete(source: str | Path, there: Sequence[str]) -> None:
    """ValueError for a source without a training or a validation split; `there` are those it has."""
    for split in NEEDED:
        if split not in there:
            found = ", ".join(there) or "none"
            raise ValueError(f"data: {source} has no {split} split (found: {found}), expected train and validation")


def refuse_untrainable(datasets: Mapping[str, Dataset]) -> None:
    """ValueError for splits that mean different things by a label, or of which one teaches nothing or has no score."""
    first = next(iter(datasets.values()))
    for dataset in datasets.values():
        if (dataset.classes, dataset.multi_label, dataset.metric) != (first.classes, first.multi_label, first.metric):
            raise ValueError(
                f"{printable(dataset.name)}, {dataset.split}: got {len(dataset.classes)} classes "
                f"({listed(dataset.classes, 3)}) scored by {dataset.metric}, expected the {len(first.classes)} of "
                f"{first.split} ({listed(first.classes, 3)}), scored by {first.metric}"
            )
        refuse_unlearnable(dataset)
        refuse_unscorable(dataset)


def refuse_unlearnable(dataset: Dataset) -> None:
    """ValueError for a split of no rows, or one to train on of one class or whose every row lacks the same modality."""
    broken = f" (after leaving out {len(dataset.broken):,} broken images)" if dataset.broken else ""
    where = f"{printable(dataset.name)}, {dataset.split}{broken}"
    if len(dataset) == 0:
        raise ValueError(f"{where}: got no rows, expected some")
    if dataset.split not in ("train", "all"):
        return
    labels = dataset.labels()
    if dataset.metric != RECALL and bool((labels == labels[:1]).all()):
        only = printable(dataset.classes[int(labels[0])]) if labels.ndim == 1 else "the same labels"
        raise ValueError(f"{where}: every row is of one class ({only}), expected two classes at least")
    for modality, missing in dataset.present().missing.items():
        if missing == len(dataset):
            raise ValueError(f"{where}: every row lacks its {modality}, expected some rows to have one")


def refuse_unscorable(dataset: Dataset) -> None:
    """ValueError for a split whose metric is not defined: better now than after an epoch."""
    labels = dataset.labels()
    if dataset.metric == "auroc" and len(labels.unique()) == 1:
        raise ValueError(
            f"{printable(dataset.name)}, {dataset.split}: every row is of one class "
            f"({printable(dataset.classes[int(labels[0])])}), expected both: without positives and negatives the area "
            "under the ROC curve is not defined"
        )
