"""Everything that decides how a run goes on, in one safetensors file that appears by rename: exact resume."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from mora.system.files import LARGEST, pack_tensors, parse_json, read_bytes, write_bytes
from mora.system.messages import printable

KEPT = 2
DAMAGED = ".damaged"


@dataclass
class Progress:
    """Where a run is, and what it found so far; JSON types only.

    Attributes:
        epoch: the epoch in progress, from 1; `epochs + 1` after the last.
        done: forward passes done in it.
        step: optimiser steps done in all.
        skipped: of these, steps that the gradient scaler left out.
        loss: sum of the epoch's losses over rows, and rows, so far.
        best: of the best epoch: {"epoch": n, "validation": {...}}; None before the first is over.
        seconds: spent so far.
    """

    epoch: int = 1
    done: int = 0
    step: int = 0
    skipped: int = 0
    loss: list[float] = field(default_factory=lambda: [0.0, 0.0])
    best: dict[str, Any] | None = None
    seconds: float = 0.0


@dataclass
class State:
    """One checkpoint: tensors by dotted name, and the rest; `earlier`: of a version that wrote no digest."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]
    earlier: bool = False

    @property
    def progress(self) -> Progress:
        """Where the run was."""
        return Progress(**self.values["progress"])

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under a prefix, without it."""
        return {n.removeprefix(f"{prefix}."): t for n, t in self.tensors.items() if n.startswith(f"{prefix}.")}


def pack(progress: Progress, parts: Mapping[str, Mapping[str, Tensor]], values: Mapping[str, Any]) -> State:
    """A checkpoint from named groups of tensors and JSON values."""
    tensors = {f"{prefix}.{name}": t.detach().clone() for prefix, part in parts.items() for name, t in part.items()}
    return State(tensors, {"progress": asdict(progress), **values})


def write_checkpoint(folder: Path, state: State) -> Path:
    """Write it as `{step}-{epoch}.safetensors` with the SHA-256 of all that is in it, and keep the last two."""
    folder.mkdir(parents=True, exist_ok=True)
    progress, values = state.values["progress"], json.dumps(state.values)
    path = folder / f"{progress['step']:09d}-{progress['epoch']:04d}.safetensors"
    write_bytes(path, pack_tensors(state.tensors, {"state": values, "sha256": fingerprint(state.tensors, values)}))
    for old in checkpoint_files(folder)[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def read_checkpoint(
    folder: Path, check: Callable[[State], None], most: int = LARGEST
) -> tuple[State | None, dict[Path, str]]:
    """(the newest checkpoint that is whole and passes `check`, or None, why each newer one does not).

    Raises ValueError when there are checkpoints and none is usable, or when the folder is a link out of the run;
    OSError when one cannot be read now: that says nothing of what is in it.
    """
    if folder.is_symlink():
        raise ValueError(f"{folder}: got a link, expected a folder of the run: old checkpoints in it are deleted")
    refused: dict[Path, str] = {}
    for path in reversed(checkpoint_files(folder)):
        try:
            state = unpack(path, most)
            check(state)
        except (FileNotFoundError, ValueError) as error:
            if isinstance(error, FileNotFoundError):  # gone since it was listed: there is nothing to pass over
                continue
            refused[path] = printable(str(error).removeprefix(f"{path}: "))
            continue
        return state, refused
    if refused:
        reasons = "; ".join(f"{path.name}: {reason}" for path, reason in refused.items())
        raise ValueError(f"{folder}: got damaged checkpoints only ({reasons}), expected one that is whole")
    return None, {}


def unpack(path: Path, most: int = LARGEST) -> State:
    """The content of a file of at most `most` bytes; ValueError unless it is what was written, bit for bit."""
    data = read_bytes(path, most)
    length = int.from_bytes(data[:8], "little")
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: {error}, expected a safetensors file") from error
    metadata = parse_json(data[8 : 8 + length].decode(), str(path)).get("__metadata__", {})
    text = metadata.get("state", "")
    earlier = set(metadata) == {"state"}  # nothing else: a damaged name is no sign of age
    if not earlier and metadata.get("sha256") != fingerprint(tensors, text):
        raise ValueError(f"{path}: got content that is not what its SHA-256 says, expected it as it was written")
    values = parse_json(text, str(path))
    if not isinstance(values, dict):
        raise ValueError(f"{path}: got a state of type {type(values).__name__}, expected an object")
    if earlier:  # of a version that wrote neither the digest nor these two
        values = {"run": None, "optimized": optimized(tensors), **values}
    return State(tensors, values, earlier)


def optimized(tensors: Mapping[str, Tensor]) -> list[int]:
    """Numbers of the parameters that an optimiser has tensors of, by the names in a checkpoint."""
    numbers = {name.split(".")[1] for name in tensors if name.startswith("optimizer.")}
    return sorted(int(number) for number in numbers if number.isascii() and number.isdigit())


def fingerprint(tensors: Mapping[str, Tensor], values: str) -> str:
    """SHA-256 of the JSON text and of every tensor's name, dtype, shape and bytes, in hexadecimal."""
    total = hashlib.sha256(f"{len(values)}\n{values}".encode(errors="surrogatepass"))
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().cpu().contiguous()
        total.update(f"{name} {flat.dtype} {tuple(flat.shape)}\n".encode(errors="surrogatepass"))
        total.update(memoryview(flat.reshape(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return total.hexdigest()


def set_aside(paths: Mapping[Path, str]) -> None:
    """Give checkpoints that cannot be used a name under which they neither count nor push out others."""
    for path in paths:
        path.replace(path.with_name(path.name + DAMAGED))


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(folder.glob("[0-9]*.safetensors"))


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """(tensors by "parameter index.name", parameter groups) of an optimiser."""
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": torch.as_tensor(t) for index, slot in state["state"].items() for name, t in slot.items()
    }
    return tensors, state["param_groups"]


def restore_optimizer(optimizer: Any, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]) -> None:
    """Put back what `optimizer_state` took."""
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        slots.setdefault(int(index), {})[key] = tensor
    groups = [{**group, "betas": tuple(group["betas"])} for group in groups]  # JSON knows lists only
    optimizer.load_state_dict({"state": slots, "param_groups": groups})


def random_state(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, JSON values) of this process's generators: torch on the CPU and `device`, Python, NumPy."""
    tensors = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    kind, keys, *rest = np.random.get_state(legacy=True)
    tensors["numpy"] = torch.from_numpy(np.asarray(keys, dtype=np.int64))
    version, words, gauss = random.getstate()
    return tensors, {"python": [version, list(words), gauss], "numpy": [kind, *rest]}


def restore_random_state(device: torch.device, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Put back what `random_state` took."""
    torch.set_rng_state(tensors["torch"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)
    kind, *rest = values["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), *rest))
    version, words, gauss = values["python"]
    random.setstate((version, tuple(words), gauss))
