"""The published optimiser and schedule: AdamW, linear warm-up, cosine decay, per step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

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
    """Linear from 0 over the share `warmup` of `steps`, then a cosine to 0.

    The numbers of transformers' `get_cosine_schedule_with_warmup`, whose import takes seconds of every start.
    """
    return torch.optim.lr_scheduler.LambdaLR(optimizer, partial(share, warm=int(steps * warmup), steps=steps))


def share(step: int, warm: int, steps: int) -> float:
    """The share of the learning rate at a step."""
    if step < warm:
        return step / max(1, warm)
    progress = (step - warm) / max(1, steps - warm)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
