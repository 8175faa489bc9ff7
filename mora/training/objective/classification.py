"""Labels from logits: cross-entropy, or binary cross-entropy where rows have several labels."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from mora.patterns import scores_by_pattern
from mora.training.batches import Share
from mora.training.objective.objective import Objective, Scores


class Classification(Objective):
    """The mean loss over rows; accuracy, macro F1 or AUROC, whatever the data is scored by."""

    def count(self, share: Share) -> int:
        return share.total

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor], share: Share, total: int) -> Tensor:
        rows = row_losses(outputs, batch["label"], self.splits["train"].dataset.multi_label)
        # Processes average their gradients: each counts its own rows, as a share of everybody's.
        return rows.sum() * (self.processes / total if share.counted else 0.0)

    def scores(self, split: str, outputs: Tensor, labels: Tensor) -> Scores:
        from mora.metrics import Metric

        dataset = self.splits[split].dataset
        new = partial(Metric, dataset.metric, len(dataset.classes), dataset.multi_label)
        metric, groups = new(), dataset.groups()
        metric.update(outputs, labels, groups)
        there = self.splits[split].inputs.present.by_modality()
        return Scores(metric.compute(), scores_by_pattern(new, outputs, labels, there, groups))


def row_losses(logits: Tensor, labels: Tensor, multi_label: bool) -> Tensor:
    """The loss of every row, float32 [B]: cross-entropy, or binary cross-entropy averaged over the classes."""
    if multi_label:
        return F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none").mean(dim=-1)
    return F.cross_entropy(logits.float(), labels, reduction="none")
