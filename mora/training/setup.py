"""What a training needs before its first step: devices, data with missing tables, and the run's description."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mora.config import PRESETS
from mora.data.corruption import Corruption
from mora.data.dataset import SPLITS, Dataset
from mora.data.open import open_dataset, splits_of
from mora.data.presence import Presence
from mora.data.table_files import find_table, load_table
from mora.data.tables import Missing, MissingTable, draw_table, presence_of, table_seed
from mora.data.trainable import refuse_incomplete, refuse_unlearnable, refuse_unscorable, refuse_untrainable
from mora.data.views import Corrupted, Rescored, thinned
from mora.metrics import RECALL
from mora.runs.backbone import Backbone, with_policy
from mora.system.files import digest
from mora.system.machine import need
from mora.training.batches import Inputs
from mora.training.config import TrainConfig


@dataclass(frozen=True)
class Split:
    """One split: samples, what each has, where its missing table came from, and tensors to train on."""

    dataset: Dataset
    present: Presence
    table: dict[str, Any]
    inputs: Inputs

    def counts(self) -> str:
        """How many samples there are and lack what, in words."""
        lacking = ", ".join(f"{count:,} without {name}" for name, count in self.present.missing.items())
        return f"{len(self.dataset):,} ({lacking})"


def make_accelerator(config: TrainConfig) -> Any:
    """The accelerator of this process; ValueError for a device or precision that is not there."""
    need("accelerate", "training")
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if config.device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: got {config.device!r}, expected 'auto', 'cpu' or 'cuda'")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: got 'cuda', expected 'cpu' or 'auto': torch sees no CUDA device")
    cpu = config.device == "cpu" or not torch.cuda.is_available()
    if cpu and config.precision == "fp16":
        raise ValueError("precision: got 'fp16' on a CPU, expected 'bf16' or 'fp32': loss scaling needs a GPU")
    # A process may train several times, with other precisions; the state of the last one would be an error.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    precision = "no" if config.precision == "fp32" else config.precision
    trackers = None if config.tracker == "none" else config.tracker
    try:
        made = Accelerator(mixed_precision=precision, cpu=cpu, log_with=trackers, project_dir=config.out)
    except ValueError as error:
        raise ValueError(f"tracker: got {config.tracker!r}: {' '.join(str(error).split())}") from error
    if trackers and not made.log_with:  # accelerate leaves out, in silence, what it cannot import
        raise ImportError(f"tracker: {config.tracker} is not installed: pip install {config.tracker}")
    return made


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def open_splits(config: TrainConfig, size: int, wanted: Sequence[str] = SPLITS) -> dict[str, Dataset]:
    """The data set's splits by name; ValueError without train or validation, or for what cannot be trained on.

    Of those that are there only the `wanted` ones are opened.
    """
    there = splits_of(config.data, extra_columns=config.extra_columns)
    refuse_incomplete(config.data, there)
    datasets = {
        split: open_dataset(config.data, split, on_broken=config.on_broken, size=size, **options_of(config))
        for split in there
        if split in wanted
    }
    refuse_untrainable(datasets)
    return datasets


def options_of(config: TrainConfig) -> dict[str, Any]:
    """The arguments of `open_dataset` that decide what the rows, classes and metric are."""
    return {
        "name": config.data_name,
        "metric": config.metric,
        "seed": config.split_seed,
        "extra_columns": config.extra_columns,
    }


def splits_for(config: TrainConfig, size: int, own: Mapping[str, Dataset] | None) -> dict[str, Dataset]:
    """Splits of one's own, or those that `open_splits` opens."""
    return open_splits(config, size) if own is None else rescored(config, own)


def rescored(config: TrainConfig, datasets: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """Splits, of one's own perhaps, as the objective scores them."""
    if config.metric != RECALL:
        return dict(datasets)
    return {name: data if data.metric == RECALL else Rescored(data, RECALL) for name, data in datasets.items()}


def prepare(config: TrainConfig, backbone: Backbone, datasets: Mapping[str, Dataset], policy: str) -> dict[str, Split]:
    """Every split with its missing table and tensors.

    Raises ValueError for a split that teaches nothing, or a table that does not fit.
    """
    preparing = backbone.preparing(with_policy(backbone.tokenizer, policy, backbone.empty_text))
    corruption = Corruption(config.patches, word_drop=config.word_drop, seed=config.seed)
    splits = {}
    for split in SPLITS:
        if split not in datasets:
            continue
        whole = datasets[split]
        table = make_table(whole, split, config)
        dataset = thinned(whole, config.limit)
        refuse_unlearnable(dataset)
        refuse_unscorable(dataset)
        present = presence_of(table, dataset)
        if config.patches or config.word_drop:
            dataset = Corrupted(dataset, corruption)
        splits[split] = Split(dataset, present, describe_table(table), Inputs(dataset, present, preparing))
    return splits


def make_table(dataset: Dataset, split: str, config: TrainConfig) -> MissingTable:
    """The missing table of a split: drawn, or read from a file or folder."""
    specification, seed = config.missing[split], table_seed(config.seed, split)  # type: ignore[index]
    if Path(specification).is_file():
        return load_table(specification, dataset)
    missing = Missing.parse(specification)
    if config.tables is not None and missing.rate > 0:
        return find_table(config.tables, dataset, missing, seed)
    return draw_table(dataset, missing, seed)


def describe_table(table: MissingTable) -> dict[str, Any]:
    """What config.json says of a missing table; `seed` is None where a published file does not tell it."""
    return {
        "missing": str(table.missing),
        "seed": table.seed,
        **table.counts,
        "sha256": digest(table.values.to(torch.uint8).numpy().tobytes()),
    }


def one_modality(split: Split) -> str | None:
    """A warning when every sample of a split lacks the same modality, or several; else None."""
    missing = split.inputs.present.missing
    lost = [name for name, count in missing.items() if count == len(split.dataset)]
    if not lost:
        return None
    left = [name for name in missing if name not in lost]
    towers, see = ("tower", "sees") if len(left) == 1 else ("towers", "see")
    return f"warning: every training row lacks its {' and '.join(lost)}: only the {', '.join(left)} {towers} {see} data"


def token_policy(config: TrainConfig, dataset: Dataset) -> str:
    """What "auto" means for this data set."""
    if config.token_policy != "auto":
        return config.token_policy
    return "official" if dataset.name in PRESETS else "plain"
