"""The objective of a run, by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mora.classifier import MissingModalityClassifier
from mora.runs.objectives import CONTRASTIVE
from mora.training.config import TrainConfig
from mora.training.objective.classification import Classification
from mora.training.objective.contrastive import Contrastive
from mora.training.objective.objective import Objective
from mora.training.setup import Split


def make_objective(
    config: TrainConfig, accelerator: Any, splits: Mapping[str, Split], model: MissingModalityClassifier
) -> Objective:
    """What `config.objective` names."""
    if config.objective == CONTRASTIVE:
        return Contrastive(accelerator, splits, model)
    return Classification(accelerator, splits)
