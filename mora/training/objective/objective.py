"""What the engine asks of an objective: how a batch is counted, its loss, and the figures of a split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from mora.training.batches import Share
from mora.training.setup import Split


class Scores(NamedTuple):
    """Figures of a split, and of the rows of each presence pattern in it (`mora.patterns.scores_by_pattern`)."""

    figures: dict[str, float]
    patterns: dict[str, dict[str, float]]


class Objective(ABC):
    """What is minimised, over what the classifier gives of a batch.

    Args:
        accelerator: of this process.
        splits: the data.
    """

    def __init__(self, accelerator: Any, splits: Mapping[str, Split]) -> None:
        self.accelerator, self.splits = accelerator, splits
        self.processes, self.rank = accelerator.num_processes, accelerator.process_index

    @abstractmethod
    def count(self, share: Share) -> int:
        """Over how many terms a forward pass of all processes is averaged."""

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor], share: Share, total: int) -> Tensor:
        """This process's part of a step's loss: averaged over the processes, value and gradient are the step's.

        Args:
            outputs: of the classifier, for the rows of `share`.
            batch: these rows.
            share: what this process takes of a forward pass.
            total: `count` of all forward passes of the step.
        """

    @abstractmethod
    def scores(self, split: str, outputs: Tensor, labels: Tensor) -> Scores:
        """Figures of all samples of a split, in order, from outputs of the classifier and labels."""
