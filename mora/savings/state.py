"""How to tell that a model's tensors changed, without reading them: places and version counters."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

State = tuple[Any, ...]


def version(tensor: Tensor) -> tuple[int, int, torch.dtype]:
    """What changes when a tensor's value changes, unless through `.data`."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version, tensor.dtype


def state_of(model: nn.Module) -> State:
    """What changes when any parameter or buffer of a model does, or an adapter is switched off or merged by PEFT."""
    return tuple(version(tensor) for tensor in chain(model.parameters(), model.buffers())), switches_of(model)


def switches_of(model: nn.Module) -> State:
    """Which adapters are on, and which PEFT has folded into weights (through `.data`, which moves no counter)."""
    names = ("enabled", "_disable_adapters", "merged_adapters")
    return tuple(str(vars(module)[name]) for module in model.modules() for name in names if name in vars(module))


def frozen_state(model: nn.Module) -> State:
    """What changes when a frozen parameter or a buffer does."""
    return tuple(version(tensor) for tensor in chain(model.parameters(), model.buffers()) if not tensor.requires_grad)


def precision(device: torch.device) -> tuple[bool, torch.dtype]:
    """Whether autocast is on, and what it computes in."""
    return torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)


class Kept:
    """Values kept until the state they were computed in is another one."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[State, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_values": {}}

    def get(self, name: str, state: State, make: Callable[[], Any]) -> Any:
        """The value of `name` in this state; `make` is called when it is not the one it was made in."""
        known = self._values.get(name)
        if known is None or known[0] != state:
            self._values[name] = known = (state, make())
        return known[1]

    def forget(self) -> None:
        """Drop everything."""
        self._values = {}
