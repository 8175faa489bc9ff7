"""The methods compared, as the demo sets them: each on a copy of the same CLIP, at its chosen scale."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from mora.config import MoraConfig
from mora.demo.settings import Settings
from mora.runs import methods
from mora.runs.methods import MORA_VARIANTS


def adapt(base: Any, method: str, settings: Settings) -> tuple[Any, dict[str, nn.Parameter]]:
    """Return an adapted copy of `base` and what is trained in it, by name; `base` itself is not touched.

    "frozen" trains nothing. Adapters are drawn from torch's global generator: seed it before.
    """
    scale = settings.choice(method).scale
    config = MoraConfig(
        rank=settings.rank,
        alpha=scale if method in MORA_VARIANTS else MoraConfig.alpha,
        dropout=settings.dropout,
        targets=settings.targets,
        last_layers=settings.last_layers,
    )
    model = copy.deepcopy(base)
    return model, methods.adapt(model, "linear" if method == "frozen" else method, config, lora_scale=scale)
