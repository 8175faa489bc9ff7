"""What a run is, in config.json and in words; and whether a run to be continued is still the same."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from torch import nn

from mora.system.messages import listed
from mora.training.backbone import Backbone
from mora.training.config import FREE_ON_RESUME, TrainConfig
from mora.training.setup import Split, one_modality, options_of
from mora.version import __version__

PACKAGES = ("torch", "open_clip_torch", "accelerate", "transformers", "peft", "torchmetrics")


def versions() -> dict[str, str]:
    """What is installed of the packages that can move a number."""
    found = {"mora-kernels": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe(
    config: TrainConfig, backbone: Backbone, splits: Mapping[str, Split], policy: str, processes: int
) -> dict[str, Any]:
    """The content of config.json."""
    dataset = splits["train"].dataset
    return {
        "data": {
            "source": config.data,
            "name": dataset.name,
            "metric": dataset.metric,
            "multi_label": dataset.multi_label,
            "options": options_of(config),
            "classes": list(dataset.classes),
            "rows": {name: len(split.dataset) for name, split in splits.items()},
            "fingerprints": {name: split.dataset.fingerprint for name, split in splits.items()},
            "broken": {name: list(split.dataset.broken) for name, split in splits.items() if split.dataset.broken},
        },
        "backbone": {
            "name": backbone.name,
            "pretrained": backbone.pretrained,
            "image_size": list(backbone.image_size),
            "sha256": backbone.fingerprint(),
        },
        "method": config.method,
        "mora": config.mora.to_dict(),
        "lora_scale": config.lora_scale,
        "token_policy": policy,
        "tables": {name: split.table for name, split in splits.items()},
        "train": config.to_dict(),
        "processes": processes,
        "versions": versions(),
    }


def check_same_run(stored: Mapping[str, Any], now: Mapping[str, Any], folder: str) -> None:
    """Raise ValueError that names the first thing in which a run to be continued differs from the one in `folder`."""
    wanted = ("train", "data", "backbone", "tables", "token_policy", "processes")
    old, new = (
        {key: value for part in wanted for key, value in flat(part, given.get(part))} for given in (stored, now)
    )
    free = {*(f"train.{name}" for name in FREE_ON_RESUME), "data.source", "backbone.pretrained"}
    for key in [*new, *(key for key in old if key not in new)]:
        if key not in free and old.get(key) != new.get(key):
            raise ValueError(
                f"{key.removeprefix('train.')}: {folder} was started with {old.get(key)!r}, this call has "
                f"{new.get(key)!r}: expected the same to resume; use another --out for another run"
            )


def flat(prefix: str, value: Any) -> list[tuple[str, Any]]:
    """(dotted name, value) of everything inside nested objects."""
    if isinstance(value, Mapping):
        return [pair for key, inner in value.items() for pair in flat(f"{prefix}.{key}", inner)]
    return [(prefix, value)]


def introduction(
    config: TrainConfig,
    splits: Mapping[str, Split],
    trained: Mapping[str, nn.Parameter],
    model: nn.Module,
    place: str,
    processes: int,
    steps: int,
) -> list[str]:
    """What is going to happen, in words.

    Args:
        config: of the run.
        splits: the data.
        trained: parameters, by name.
        model: the CLIP.
        place: the kind of device.
        processes: how many train together.
        steps: of the optimiser per epoch.
    """
    count, total = sum(p.numel() for p in trained.values()), sum(p.numel() for p in model.parameters())
    dataset = splits["train"].dataset
    rows = ", ".join(f"{name} {split.counts()}" for name, split in splits.items())
    lines = [
        f"{config.method} on {config.backbone}: {count:,} trained parameters (head included), "
        f"{100 * count / total:.2f} % of {total:,}; {config.precision}, {place} x {processes}",
        f"{dataset.name}, {len(dataset.classes)} classes: {rows}",
        f"{config.epochs} epochs of {steps} steps of {config.batch * config.accumulation * processes} rows",
    ]
    lines += [
        f"left out of {name}: {len(split.dataset.broken):,} images that cannot be read: {listed(split.dataset.broken)}"
        for name, split in splits.items()
        if split.dataset.broken
    ]
    warning = one_modality(splits["train"])
    return lines if warning is None else [*lines, warning]
