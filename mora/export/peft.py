"""A trained run as a folder that PEFT loads: a LoRA or DoRA as it is, any other update truncated."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mora.checkpoint.peft.names import NAMES, path_of
from mora.checkpoint.peft.truncate import PeftUpdate, to_peft
from mora.checkpoint.peft.write import Update, config_of, write_folder
from mora.runs.methods import MORA_VARIANTS, adapted_slots
from mora.runs.run import LoadedRun, load_run
from mora.system.checks import one_of
from mora.system.messages import printable


def run_to_peft(
    model: str | os.PathLike[str] | LoadedRun,
    out: str | os.PathLike[str],
    rank: int | None = None,
    tolerance: float = 0.1,
    names: str = "model",
) -> PeftUpdate | None:
    """Write what a run of `mora train` did to the weights of its CLIP as PEFT's files, `mora.to_peft`.

    Runs of "lora" and "dora" are written as they are, whatever the rank; None is returned then. The head is not PEFT's:
    classifier.safetensors of the run, or of `mora merge`, has it.

    Args:
        model: a run folder, or a loaded run.
        out: folder to make, or an empty one.
        rank, tolerance, names: as `mora.to_peft` takes them.

    Raises:
        ValueError: a method that is no update of projections; `out` holds something.
        OSError: no run there, or `out` cannot be written.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"out: got {printable(str(folder))}, which holds other files, expected a new or empty folder")
    one_of("names", names, NAMES)
    run = model if isinstance(model, LoadedRun) else load_run(model)
    if run.method in MORA_VARIANTS:
        return to_peft(run.model.model, folder, rank, tolerance, names=names)
    if run.method not in ("lora", "dora"):
        expected = ", ".join(("lora", "dora", *MORA_VARIANTS))
        raise ValueError(f"model: got a run of method {run.method!r}, expected one of {expected}")
    updates = layers_of(run, names)
    every = [name for name, _ in run.model.model.named_modules() if names == "model"]
    write_folder(folder, updates, config_of(updates, dropout=run.mora_config.dropout, every=[*every, *updates]))
    return None


def layers_of(run: LoadedRun, names: str) -> dict[str, Update]:
    """A, B, m of every layer of PEFT's in a run, by path."""
    found: dict[str, Update] = {}
    for slot in adapted_slots(run.model.model, run.mora_config):
        targets = run.mora_config.targets_of(slot.modality)
        for target, place in zip(targets, slot.linear_names(targets), strict=True):
            layer: Any = run.model.model.get_submodule(place)
            (adapter,) = layer.lora_A
            a, b = layer.lora_A[adapter].weight.detach(), layer.lora_B[adapter].weight.detach()
            magnitudes = layer.lora_magnitude_vector
            magnitude = magnitudes[adapter].weight.detach() if adapter in magnitudes else None
            found[path_of(slot, target, names)] = Update(a, b, magnitude, layer.scaling[adapter] * a.shape[0])
    return found
