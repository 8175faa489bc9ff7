"""What `mora train` does where neither an argument nor a preset says it; argued in docs/training.md.

The published recipe trains adapters and head at one learning rate and starts from factors that are drawn at random.
It is what the presets do. Elsewhere adapters and head have learning rates of their own, MoRA starts as the pretrained
model, and its alpha lets the adapters move: chosen on the validation part of the demo's tasks (mora/demo/plan.json).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mora.runs.methods import LAST_BLOCK, LINEAR, MORA_VARIANTS

HEAD_LR = 1e-2
LR = {
    **dict.fromkeys(MORA_VARIANTS, 3e-2),
    "lora": 3e-2,
    "dora": 3e-2,
    LAST_BLOCK: 1e-3,
}
ADAPTERS = {"alpha": 0.1, "init": "identity"}
NO_IDENTITY = "mora-no-specific"  # the common term alone has no such start


def recipe(given: Mapping[str, Any], method: str) -> dict[str, float]:
    """Learning rates of adapters and head; where the head is all that is trained, `lr` is the head's."""
    if method == LINEAR and "lr" in given:
        return {"head_lr": given["lr"]}
    return {"lr": LR.get(method, HEAD_LR), "head_lr": HEAD_LR}


def adapters(method: str) -> dict[str, Any]:
    """Fields of `MoraConfig` that are not the published ones."""
    return {name: value for name, value in ADAPTERS.items() if (name, method) != ("init", NO_IDENTITY)}
