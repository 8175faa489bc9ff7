"""What a run is, in config.json and in words; and whether a run to be continued is still the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from mora.adapters.prompts import PromptSize
from mora.data.presence import PAIR
from mora.heads import LINEAR, SUBSTITUTE
from mora.runs.backbone import Backbone
from mora.runs.objectives import CLASSIFICATION
from mora.system.files import digest
from mora.system.machine import versions
from mora.system.messages import listed, printable
from mora.training.checkpoints import Progress
from mora.training.config import FREE_ON_RESUME, TrainConfig
from mora.training.setup import Split, one_modality, options_of


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
            **({} if dataset.modalities == PAIR else {"modalities": list(dataset.modalities)}),
            "broken": {name: list(split.dataset.broken) for name, split in splits.items() if split.dataset.broken},
        },
        "backbone": {
            "name": backbone.name,
            "pretrained": backbone.pretrained,
            "image_size": list(backbone.image_size),
            "sha256": backbone.fingerprint(),
        },
        "method": config.method,
        "objective": config.objective,
        "head": config.head_kind,
        "missing_embedding": config.missing_kind,
        "mora": config.mora.to_dict(),
        "lora_scale": config.lora_scale,
        "prompts": config.prompts._asdict(),
        "token_policy": policy,
        "tables": {name: split.table for name, split in splits.items()},
        "train": config.to_dict(),
        "processes": processes,
        "versions": versions(),
    }


def identity(description: Mapping[str, Any]) -> dict[str, Any]:
    """By dotted name, what a run to be continued must have as it was."""
    wanted = ("train", "data", "backbone", "tables", "token_policy", "processes")
    later = {  # what runs of before these fields did
        "train.objective": CLASSIFICATION,
        "train.head": LINEAR,
        "train.missing_embedding": SUBSTITUTE,
        **{f"train.prompt_{name}": value for name, value in PromptSize()._asdict().items()},
    }
    free = {*(f"train.{name}" for name in FREE_ON_RESUME), "data.source", "backbone.pretrained"}
    pairs = (pair for part in wanted for pair in flat(part, description.get(part)))
    return {key: value for key, value in pairs if key not in free and later.get(key) != value}


def run_digest(description: Mapping[str, Any]) -> str:
    """SHA-256 of a run's identity, in hexadecimal."""
    return digest(json.dumps(identity(description), sort_keys=True).encode())


def check_same_run(stored: Mapping[str, Any], now: Mapping[str, Any], folder: str) -> None:
    """Raise ValueError that names the first thing in which a run to be continued differs from the one in `folder`."""
    old, new = identity(stored), identity(now)
    for key in [*new, *(key for key in old if key not in new)]:
        if old.get(key) != new.get(key):
            raise ValueError(
                f"{key.removeprefix('train.')}: {folder} was started with {old.get(key)!r}, this call has "
                f"{new.get(key)!r}: expected the same to resume; use another --out for another run"
            )


def other_versions(stored: Mapping[str, Any]) -> str | None:
    """A warning when a run was started under other versions of what can move a number; else None."""
    before, now = stored.get("versions"), versions()
    before = before if isinstance(before, dict) else {}
    changed = [f"{name} {before.get(name)} then, {now.get(name)} now" for name in {**before, **now}
               if before.get(name) != now.get(name)]  # fmt: skip
    if not changed:
        return None
    return printable(f"warning: resumed under other versions, numbers may differ: {', '.join(changed)}")


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
        ("nothing is trained: the names of the classes are the prompts" if not trained else "")
        or f"{config.epochs} epochs of {steps} steps of {config.batch * config.accumulation * processes} rows",
    ]
    lines += [
        f"left out of {name}: {len(split.dataset.broken):,} images that cannot be read: {listed(split.dataset.broken)}"
        for name, split in splits.items()
        if split.dataset.broken
    ]
    warning = one_modality(splits["train"])
    return lines if warning is None else [*lines, warning]


def where(progress: Progress, steps: int, epochs: int, written: int | None) -> str:
    """Where a run stops, and how it goes on, in words; `written` is the step of its last checkpoint."""
    kept = "there is no checkpoint yet" if written is None else f"the last checkpoint is of step {written}"
    kept = "its checkpoint is written" if written == progress.step else kept
    epoch = min(progress.epoch, epochs)
    return (
        f"after step {progress.step} of {steps} (epoch {epoch} of {epochs}); {kept}: the same command with --resume "
        "goes on"
    )
