"""Write a LoRA or DoRA as PEFT does: `adapter_config.json` and `adapter_model.safetensors` under module paths."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from mora.adapters.record import Adapters, unwrap
from mora.bases.sharded import whole
from mora.checkpoint.peft.names import PREFIX, ambiguous, path_of
from mora.checkpoint.tensors import check_values
from mora.lora.linear import LoraLinear
from mora.system.files import pack_tensors, write_bytes

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class Update(NamedTuple):
    """One projection: A [r, in], B [out, r], DoRA's m [out] or None, and lora_alpha."""

    a: Tensor
    b: Tensor
    magnitude: Tensor | None
    alpha: float


def updates_of(adapters: Adapters, names: str = "model") -> tuple[dict[str, Update], bool]:
    """(the updates of an adapter by path, whether scales are rank-stabilised); ValueError unless all towers are LoRA's.

    PEFT has one method for all modules of a file.
    """
    modes = adapters.config.modes()
    if modes not in ({"lora"}, {"dora"}):
        raise ValueError(
            f"format: got 'peft' for an adapter of method {' and '.join(sorted(modes))}, expected 'lora' or 'dora' "
            "alone; mora.to_peft writes what another one does to the weights as a LoRA"
        )
    stable, found = adapters.config.use_rslora, {}
    for slot in adapters.slots():
        for target, one in slot.projections.items():
            assert isinstance(one, LoraLinear)
            alpha = one.alpha * (one.rank**0.5 if stable else one.rank)
            magnitude = None if one.magnitude is None else whole(one.magnitude.detach())
            found[path_of(slot, target, names)] = Update(
                whole(one.lora_a.detach()), whole(one.lora_b.detach()), magnitude, alpha
            )
    return found, stable


def config_of(
    updates: Mapping[str, Update], stable: bool = False, dropout: float = 0.0, every: Iterable[str] = ()
) -> dict[str, Any]:
    """The content of `adapter_config.json`; `every` are the names of all modules of the model, where they are known."""
    paths = sorted(updates)
    ranks, alphas = {p: updates[p].a.shape[0] for p in paths}, {p: round_off(updates[p].alpha) for p in paths}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    unclear = ambiguous(paths, every)

    def pattern(values: Mapping[str, Any], usual: Any) -> dict[str, Any]:
        return {f"^{re.escape(p)}" if unclear else p: value for p, value in values.items() if value != usual}

    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": pattern(ranks, rank),
        "alpha_pattern": pattern(alphas, alpha),
        "target_modules": "|".join(map(re.escape, paths)) if unclear else paths,
        "lora_dropout": dropout,
        "use_dora": any(update.magnitude is not None for update in updates.values()),
        "use_rslora": stable,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "task_type": None,
        "base_model_name_or_path": None,
    }


def round_off(alpha: float) -> float | int:
    """lora_alpha as it was given: 16 rather than 16.000000000000004."""
    near = round(alpha, 9)
    return int(near) if near == int(near) else near


def write_folder(folder: Path, updates: Mapping[str, Update], config: Mapping[str, Any]) -> Path:
    """Write both files, the configuration last; ValueError, and nothing written, for NaN or infinity."""
    tensors: dict[str, Tensor] = {}
    for path, one in updates.items():
        tensors |= {f"{PREFIX}{path}.lora_A.weight": one.a, f"{PREFIX}{path}.lora_B.weight": one.b}
        tensors |= {} if one.magnitude is None else {f"{PREFIX}{path}.lora_magnitude_vector": one.magnitude}
    check_values(str(folder), tensors)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / WEIGHTS, pack_tensors(tensors, {"format": "pt"}))
    write_bytes(folder / CONFIG, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    return folder


def write_adapter(model: nn.Module, adapters: Adapters, folder: Path) -> Path:
    """Write a LoRA or DoRA of a patched model."""
    updates, stable = updates_of(adapters)
    every = [name for name, _ in unwrap(model).named_modules()]
    return write_folder(folder, updates, config_of(updates, stable, adapters.config.dropout, [*every, *updates]))
