"""The published optimiser and schedule: AdamW, linear warm-up, cosine decay, per step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from mora.system.machine import need
from mora.training.config import TrainConfig


def make_optimizer(
    adapters: Iterable[nn.Parameter], head: Iterable[nn.Parameter], config: TrainConfig
) -> torch.optim.Optimizer:
    """AdamW over adapters and head: one group as published, two where the head has a learning rate of its own."""
    own, last = list(adapters), list(head)
    groups: list[dict[str, Any]] = [{"params": [*own, *last], "lr": config.lr}]
    if config.head_lr is not None:
        groups = [{"params": own, "lr": config.lr}] if own else []
        groups.append({"params": last, "lr": config.head_lr})
    return torch.optim.AdamW(groups, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay)


def make_schedule(optimizer: torch.optim.Optimizer, steps: int, warmup: float) -> torch.optim.lr_scheduler.LRScheduler:
    """Linear from 0 over the share `warmup` of `steps`, then a cosine to 0; ImportError without transformers."""
    optimization = need("transformers.optimization", "training", extra="train")
    return optimization.get_cosine_schedule_with_warmup(optimizer, int(steps * warmup), steps)
