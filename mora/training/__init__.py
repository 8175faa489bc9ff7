"""Training: `mora.train`, `Trainer` for more, and the run folder they leave behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mora.runs.backbone import Backbone, load_backbone
    from mora.runs.run import LoadedRun, load_run
    from mora.training.config import TrainConfig
    from mora.training.result import Result
    from mora.training.trainer import Trainer, train

__all__ = ["Backbone", "LoadedRun", "Result", "TrainConfig", "Trainer", "load_backbone", "load_run", "train"]

PLACES = {
    "Backbone": "mora.runs.backbone",
    "load_backbone": "mora.runs.backbone",
    "TrainConfig": "mora.training.config",
    "LoadedRun": "mora.runs.run",
    "load_run": "mora.runs.run",
    "Result": "mora.training.result",
    "Trainer": "mora.training.trainer",
    "train": "mora.training.trainer",
}


def __getattr__(name: str) -> Any:
    """Import on first use: reading a run needs nothing that training needs."""
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(PLACES[name]), name)
