"""accelerate: linears that a hook runs, with their weights at hand, or elsewhere (memory, disk) between two calls."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from mora.bases.base import Base
from mora_kernels.factors import Origin

HOOK = "AlignDevicesHook"


def hook_of(linear: Any) -> Any:
    """accelerate's hook on a module, None where there is none."""
    return getattr(linear, "_hf_hook", None)


def offloads(linear: Any) -> bool:
    """Whether a hook takes the weights of a module away between calls."""
    return bool(getattr(hook_of(linear), "offload", False))


def aligned(linear: Any) -> bool:
    """Whether the forward of an instance is replaced by accelerate, with the one hook that changes no value."""
    hook = hook_of(linear)
    return hook is not None and type(hook).__name__ == HOOK and type(hook).__module__.startswith("accelerate.")


def base_of(linear: Any, path: str) -> Base | None:
    """The base of an `nn.Linear` that accelerate's hook runs; None for others."""
    if type(linear) is not nn.Linear or not aligned(linear):
        return None
    if not offloads(linear):
        return Dispatched(linear)
    if hook_of(linear).weights_map is None:
        raise ValueError(f"model: {path} is offloaded by a hook without a map of weights, expected accelerate's own")
    return Offloaded(linear)


class Dispatched(Base):
    """A linear that stays where it is; the hook moves what it is given."""

    written = True

    @property
    def label(self) -> str:
        return "accelerate's hook"

    @property
    def dtype(self) -> torch.dtype:
        return self.own_dtype

    def dequantised(self) -> Tensor:
        return self.linear.weight

    def sources(self) -> list[Tensor]:
        return [self.linear.weight]

    def write(self, weight: Tensor) -> None:
        self.linear.weight.copy_(weight)


class Offloaded(Dispatched):
    """A linear on the meta device between calls; the hook's map knows the values."""

    @property
    def label(self) -> str:
        return "accelerate's offload to disk" if self.file else "accelerate's offload to the CPU"

    @property
    def device(self) -> torch.device:
        where = hook_of(self.linear).execution_device
        return torch.device("cuda", where) if isinstance(where, int) else torch.device(where)

    def value(self, name: str) -> Tensor:
        """A parameter as the map holds it: the very tensor, or read from the disk."""
        return hook_of(self.linear).weights_map[name]

    @property
    def bias(self) -> Tensor | None:
        return None if self.linear.bias is None else self.value("bias").to(self.device)

    def dequantised(self) -> Tensor:
        return self.value("weight").to(self.device)

    @property
    def file(self) -> str:
        """Where W is on the disk; "" where it is in memory."""
        mapping = hook_of(self.linear).weights_map
        key = f"{getattr(mapping, 'prefix', '')}weight"
        loader = getattr(mapping, "dataset", mapping)
        index = getattr(loader, "index", {})
        if key not in index or key in loader.state_dict:
            return ""
        return index[key].get("safetensors_file") or os.path.join(loader.save_folder, f"{key}.dat")

    def sources(self) -> list[Tensor]:
        return [] if self.file else [self.value("weight")]

    def origin(self) -> Origin:
        if not (path := self.file):
            return super().origin()
        found = os.stat(path)
        return Origin((path, found.st_mtime_ns, found.st_size), [])

    @property
    def written(self) -> bool:  # type: ignore[override]
        return not self.file

    def write(self, weight: Tensor) -> None:
        self.value("weight").copy_(weight)
