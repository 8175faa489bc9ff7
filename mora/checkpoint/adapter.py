"""Our own checkpoint: a folder with `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from mora.adapters.patching import admitted, check_name, patch
from mora.adapters.record import (
    DEFAULT,
    Adapters,
    adapter_state_dict,
    adapters_of,
    host_of,
    is_patched,
    layers_of,
    unwrap,
)
from mora.checkpoint.base import check_base, fingerprint, held
from mora.checkpoint.peft.names import places
from mora.checkpoint.peft.read import is_peft, read_folder
from mora.checkpoint.peft.write import write_adapter
from mora.checkpoint.tensors import (
    assign,
    check_same_adapters,
    check_tensors,
    check_values,
    config_from,
    expected_shapes,
    largest_file,
)
from mora.config import MoraConfig
from mora.named.verbs import add_adapter
from mora.system.checks import one_of
from mora.system.files import digest, pack_tensors, read_json, read_tensors, write_bytes
from mora.system.messages import shown
from mora.towers.custom import described
from mora.towers.find import towers_of_itself
from mora.towers.tower import Tower
from mora.version import __version__

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FORMAT = 1


def save_adapter(
    model: nn.Module, folder: str | os.PathLike[str], name: str | None = None, format: str = "mora"
) -> Path:
    """Write an adapter of a patched model to `folder` and return its path.

    The weights appear first and the configuration, which names their SHA-256, last; each by rename, so that a save cut
    short is noticed when loading.

    Args:
        model: a patched CLIP.
        folder: where to; made where it is not there.
        name: of the adapter; None: the active one. The file does not say it.
        format: "peft" writes a LoRA or DoRA as PEFT does, for `peft.PeftModel.from_pretrained`.

    Where `fully_shard` was applied every process has to call it, and the first one writes.

    Raises ValueError when `model` is not patched or has no such adapter, the adapter has NaN or infinity, or another
    method than PEFT has: what loading refuses is not saved, and what stood in `folder` stays.
    """
    adapters = adapters_of(model, name)
    one_of("format", format, ("mora", "peft"))
    if format == "peft":
        return write_adapter(model, adapters, Path(folder))
    base, kinds = fingerprint(adapters.slots(), adapters.config), held(adapters.slots(), adapters.config)
    folder, tensors = Path(folder), adapter_state_dict(model, adapters.name)
    check_values(str(folder), tensors)
    folder.mkdir(parents=True, exist_ok=True)
    gram = adapters.config.gram_of(adapters.pairs)
    weights = pack_tensors(tensors, {"format": "mora-adapter"})
    config = {
        "peft_type": "MORA",  # PEFT refuses a type it does not know, instead of loading something else
        "format": FORMAT,
        "mora_version": __version__,
        "config": replace(adapters.config, backend="auto", gram=gram).to_dict(),
        "layers": adapters.layers(),
        "towers": {name: {"kind": one.kind, "family": one.family} for name, one in adapters.adapted.items()},
        "base": base,
        **({"held": kinds} if kinds else {}),
        "weights_sha256": digest(weights),
    }
    write_bytes(folder / WEIGHTS, weights)
    write_bytes(folder / CONFIG, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    return folder


def save_adapters(model: nn.Module, folder: str | os.PathLike[str]) -> Path:
    """Write every adapter of a patched model, each as `save_adapter` does into a folder of its name within `folder`.

    Raises as `save_adapter` does; those before the one that is refused are written then.
    """
    for name in host_of(model).every():
        save_adapter(model, Path(folder) / name, name)
    return Path(folder)


def load_adapter(
    model: nn.Module,
    folder: str | os.PathLike[str],
    base: str = "same",
    towers: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> nn.Module:
    """Load adapters saved by `save_adapter`, or PEFT's LoRA or DoRA, and return the model, patched if it was not yet.

    Args:
        model: a CLIP of any library, patched or not.
        folder: as `save_adapter` wrote it.
        base: "same" refuses base weights that differ from those the adapter was trained on by more than half precision
            does (0.5 % of their norm); "any" insists. PEFT's files do not say, and are not checked.
        towers: of a model of your own that is not patched, as `mora.patch` takes them.
        name: of the adapter. One that the model has must be of the file's configuration, and is written in place: what
            was compiled goes on as it is. Another is put beside those there are, not active, as by `mora.add_adapter`.
            None: the active one; "default" for a model that is not patched.

    Raises:
        FileNotFoundError: `folder` has no adapter.
        ValueError: another rank, alpha, target, variant, layer or width; other base weights; a missing, extra or
            non-finite tensor; a pickle or a damaged file; what PEFT has and mora has not (biases, saved modules, other
            tuners). The message names it, and the model is as it was.
    """
    one_of("base", base, ("same", "any"))
    folder = Path(folder)
    if (folder / CONFIG).is_file() and is_peft(read_json(folder / CONFIG)):
        return load_peft(model, folder, towers, name)
    saved = read_config(folder)
    config = config_from(str(folder / CONFIG), saved["config"])
    into = target_of(model, name)
    if into is not None:
        check_same_adapters(str(folder), config, into)
        pairs, config, own = into.pairs, into.config, into.towers
    else:
        own = own_towers(model, towers)
        pairs = admitted(unwrap(model), own, config)
    layers = layers_of(pairs)
    check_kinds(folder, saved.get("towers"), {name: own[name] for name in layers})
    if saved["layers"] != layers:
        raise ValueError(f"layers: {folder} adapts {saved['layers']}, the model {layers}: expected the same blocks")
    shapes = expected_shapes(pairs, config)
    tensors, found = read_tensors(folder / WEIGHTS, largest_file(shapes))
    if found != saved["weights_sha256"]:
        raise ValueError(f"{folder / WEIGHTS}: its SHA-256 is not the one in {CONFIG}, expected files of one save")
    check_tensors(str(folder / WEIGHTS), tensors, shapes)
    slots = [slot for pair in pairs for slot in pair.values()]
    present = fingerprint(slots, config)
    if base == "same" and "base" in saved:
        check_base(present, saved["base"], str(folder), (held(slots, config), saved.get("held")))
    elif base == "same":
        warnings.warn(f"{folder / CONFIG} does not say which base weights it belongs to: not checked", stacklevel=2)
    put_in(model, config, towers, name)
    assign(adapters_of(model, name), tensors, str(folder / WEIGHTS))
    return model


def load_peft(model: nn.Module, folder: Path, towers: Mapping[str, Any] | None, name: str | None) -> nn.Module:
    """As `load_adapter`, of a folder of PEFT's."""
    into, own = target_of(model, name), own_towers(model, towers)
    config, tensors = read_folder(folder, places(unwrap(model), own))
    if into is not None:
        check_same_adapters(str(folder), config, into)
        pairs, config = into.pairs, into.config
    else:
        pairs = admitted(unwrap(model), own, config)
    check_tensors(str(folder / WEIGHTS), tensors, expected_shapes(pairs, config))
    put_in(model, config, towers, name)
    assign(adapters_of(model, name), tensors, str(folder / WEIGHTS))
    return model


def target_of(model: nn.Module, name: str | None) -> Adapters | None:
    """The adapter of a model that is loaded into; None where one is to be put in."""
    if name is not None:
        check_name(name)
    return adapters_of(model, name) if is_patched(model) and (name is None or name in host_of(model).every()) else None


def own_towers(model: nn.Module, towers: Mapping[str, Any] | None) -> dict[str, Tower]:
    """The towers of a model, patched, known or described."""
    if is_patched(model):
        return host_of(model).towers
    return towers_of_itself(model) if towers is None else described(model, towers)


def put_in(model: nn.Module, config: MoraConfig, towers: Mapping[str, Any] | None, name: str | None) -> None:
    """See to it that a model has the adapter that is loaded into."""
    if not is_patched(model):
        patch(model, config, towers, name or DEFAULT)
    elif name is not None and name not in host_of(model).every():
        add_adapter(model, name, config)


def check_kinds(folder: Path, theirs: Any, ours: Mapping[str, Tower]) -> None:
    """Raise ValueError that names a tower of another family than the one an adapter was trained on."""
    for modality, tower in ours.items():
        saved = theirs.get(modality) if isinstance(theirs, dict) else None
        got = saved if isinstance(saved, dict) else {"family": tower.family}  # earlier versions did not say
        if got.get("family") != tower.family:
            was = f"{shown(got.get('kind'))} ({shown(got.get('family'))})"
            raise ValueError(
                f"towers: {folder} was trained on a tower of kind {was} for {modality!r}, the model's is "
                f"{tower.kind!r} ({tower.family!r}): expected the same family"
            )


def read_config(folder: Path) -> dict[str, Any]:
    """Return the checked content of `adapter_config.json`."""
    path = folder / CONFIG
    if not path.is_file() or not (folder / WEIGHTS).is_file():
        there = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else "no such folder"
        raise FileNotFoundError(f"folder: got {folder} ({there}), expected {CONFIG} and {WEIGHTS} in it")
    saved = read_json(path)
    wanted = {"config": dict, "layers": dict, "weights_sha256": str, "format": int}
    for key, kind in wanted.items():
        if not isinstance(saved.get(key), kind):
            raise ValueError(f"{path}: {key!r} is {shown(saved.get(key))}, expected a {kind.__name__} (a MoRA adapter)")
    if saved["format"] != FORMAT:
        raise ValueError(
            f"{path}: format {saved['format']}, expected {FORMAT}: saved by mora {saved.get('mora_version')}"
        )
    saved["config"]["backend"] = "auto"  # what computes it is the choice of the machine at hand
    if len(saved["layers"]) > 2 and "method" not in saved["config"]:
        saved["config"].setdefault("gram", "sum")  # earlier versions knew no other, and did not say
    return saved
