"""Pairs instead of labels: embeddings of one row nearer to each other than to those of other rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mora.classifier import MissingModalityClassifier
from mora.contrast.loss import contrastive_loss, count_pairs
from mora.contrast.ranks import figures_of, retrieval
from mora.heads import SCALE
from mora.training.batches import Share
from mora.training.objective.objective import Objective, Scores
from mora.training.setup import Split

LEAST = 2  # pairs of a split: with one, nothing can be confused


class Contrastive(Objective):
    """The mean of CLIP's loss over the pairs of a step, SigLIP's where the model has its bias; recall at 1 both ways.

    Every forward pass is a batch of its own, over all processes: rows of other ones are no negatives. The model's scale
    of cosines is used as it is; it is not trained.

    Args:
        accelerator, splits: as of every objective.
        model: what gives embeddings; `logit_scale` and `logit_bias` of the CLIP inside are looked for.

    Raises ValueError for a split with fewer than two pairs, and for towers of other modalities than the data's.
    """

    def __init__(self, accelerator: Any, splits: Mapping[str, Split], model: MissingModalityClassifier) -> None:
        super().__init__(accelerator, splits)
        scale, bias = getattr(model.clip, "logit_scale", None), getattr(model.clip, "logit_bias", None)
        self.scale: Tensor | float = scale.detach().float().exp() if isinstance(scale, Tensor) else SCALE
        self.bias: Tensor | None = bias.detach().float() if isinstance(bias, Tensor) else None
        self.present = {name: presence_of(split) for name, split in splits.items()}
        self.pictures = {name: split.dataset.pictures() for name, split in splits.items()}
        for name, present in self.present.items():
            if {*present} != {*model.towers}:
                raise ValueError(
                    f"objective: got 'contrastive' with a model of {' and '.join(model.towers)} on data of "
                    f"{' and '.join(present)}, expected a tower of its own for each"
                )
            self.present[name] = present = {modality: present[modality] for modality in model.towers}
            if (count := count_pairs(present)) < LEAST:
                raise ValueError(
                    f"objective: got 'contrastive' with {count} rows of {name} that have {' and '.join(present)}, "
                    f"expected {LEAST} at least: less may be taken away (--missing)"
                )

    def count(self, share: Share) -> int:
        rows = torch.tensor(share.everyones)
        return count_pairs({modality: there[rows] for modality, there in self.present["train"].items()})

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor], share: Share, total: int) -> Tensor:
        there = {modality: mask[batch["index"].cpu()] for modality, mask in self.present["train"].items()}
        if not share.counted:
            there = {modality: torch.zeros_like(mask) for modality, mask in there.items()}
        size = -(-share.total // self.processes)
        rows = self.everyones(padded(outputs.float(), size))
        masks = self.everyones(padded(torch.stack([*there.values()], dim=1).to(outputs), size)).bool()
        shown = self.everyones(padded(self.pictures["train"].to(outputs.device)[batch["index"]], size))
        embedded = dict(zip(there, rows.chunk(len(there), dim=1), strict=True))
        present = dict(zip(there, masks.unbind(dim=1), strict=True))
        value = contrastive_loss(embedded, present, self.scale, self.bias, shown) * (1 / total if total else 0.0)
        # All have the loss of all rows, each the gradient of its own rows: averaged over the processes, that is a part.
        return value + (self.processes - 1) * (value - value.detach())

    def everyones(self, rows: Tensor) -> Tensor:
        """The rows of all processes, those of this one with their gradient."""
        if self.processes == 1:
            return rows
        parts = list(self.accelerator.gather(rows.detach().contiguous()).chunk(self.processes))
        parts[self.rank] = rows
        return torch.cat(parts)

    def scores(self, split: str, outputs: Tensor, labels: Tensor) -> Scores:
        present = self.present[split]
        embedded = dict(zip(present, outputs.chunk(len(present), dim=1), strict=True))
        return Scores(figures_of(retrieval(embedded, present, self.pictures[split])), {})


def presence_of(split: Split) -> dict[str, Tensor]:
    """Which samples have each modality, bool [N], natural and simulated absence."""
    return split.inputs.present.by_modality()


def padded(rows: Tensor, size: int) -> Tensor:
    """The rows, and zeros up to `size` of them."""
    return torch.cat([rows, rows.new_zeros(size - len(rows), *rows.shape[1:])])
