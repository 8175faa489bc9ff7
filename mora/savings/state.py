"""How to tell that a model's tensors changed, without reading them: places and version counters."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from mora.adapters.record import Adapters
from mora_kernels.kept import scope_of

State = tuple[Any, ...]


def version(tensor: Tensor) -> tuple[Any, ...]:
    """What changes when a tensor's value changes, as far as autograd counts; never the same for an inference tensor."""
    return tensor.data_ptr(), object() if tensor.is_inference() else tensor._version, tensor.dtype


def state_of(model: nn.Module) -> State:
    """What changes when any parameter or buffer of a model does, or an adapter is switched off or merged by PEFT."""
    return tuple(version(tensor) for tensor in chain(model.parameters(), model.buffers())), switches_of(model)


def switches_of(model: nn.Module) -> State:
    """Which adapter is on here and how strong, and which PEFT has switched off or folded in (uncounted)."""
    record = getattr(model, "mora", None)
    names = ("_disable_adapters", "merged_adapters")
    theirs = tuple(str(vars(module)[name]) for module in model.modules() for name in names if name in vars(module))
    if not isinstance(record, Adapters):
        return None, theirs
    every = [projection for one in record.every().values() for _, projection in one.projections()]
    strengths = (number for one in every for number in one.strengths())
    return (record.here(), record.switch.is_on, *strengths), theirs


def frozen_state(model: nn.Module) -> State:
    """What changes when a frozen parameter or a buffer does, as far as autograd counts."""
    return tuple(version(tensor) for tensor in tensors_of(model, buffers=True) if not tensor.requires_grad)


def flags_of(model: nn.Module) -> list[bool]:
    """Which parameters of a model require a gradient."""
    return [parameter.requires_grad for parameter in tensors_of(model, buffers=False)]


def tensors_of(model: nn.Module, buffers: bool) -> list[Tensor]:
    """The parameters of a module and of all in it, and the buffers: asked at every call, so without their names."""
    found: list[Tensor] = []
    modules = [model]
    for module in modules:
        found += [tensor for tensor in module._parameters.values() if tensor is not None]
        if buffers:
            found += [tensor for tensor in module._buffers.values() if tensor is not None]
        modules += [child for child in module._modules.values() if child is not None]
    return found


def precision(device: torch.device) -> tuple[bool, torch.dtype]:
    """Whether autocast is on, and what it computes in."""
    return torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)


def kept(model: nn.Module, name: Any, state: Callable[[], State], make: Callable[[], Any]) -> Any:
    """The value of `name`, made now, or the one kept of this state where somebody asked to keep values of `model`.

    In the call of a model that nobody asked to keep anything of, one value serves that call.
    """
    scope = scope_of(model)
    if scope is None:
        return make()

    def made() -> tuple[Any, list[Tensor]]:
        # With every tensor it depends on, so that no other comes to lie where one of these did.
        tensors = chain(model.parameters(), model.buffers()) if scope.lasting else ()
        return make(), [tensor.detach() for tensor in tensors]

    device = next(model.parameters()).device
    return scope.keep((name, id(model)), state() if scope.lasting else None, made, device)[0]


class Kept:
    """Findings about the structure of a model, kept until it is another one; no values of tensors."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._values: dict[str, tuple[State, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, content: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def get(self, name: str, state: State, make: Callable[[], Any]) -> Any:
        """The finding of `name` in this state; one thread calls `make` when it was made in another."""
        known = self._values.get(name)
        if known is None or known[0] != state:
            with self._lock:
                known = self._values.get(name)
                if known is None or known[0] != state:
                    self._values[name] = known = (state, make())
        return known[1]

    def forget(self) -> None:
        """Drop everything."""
        self._values = {}
