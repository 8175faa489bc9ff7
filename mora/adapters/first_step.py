"""What the first training step after `patch` shows: adapters that cannot train. Said once, and not looked for again."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mora.adapters.record import Adapters, adapters_of, is_patched
from mora.system.messages import listed

_awaited: weakref.WeakKeyDictionary[Adapters, weakref.ref[nn.Module]] = weakref.WeakKeyDictionary()
_hooks: list[Any] = []


def await_first_step(model: nn.Module, adapters: Adapters) -> None:
    """Look at the first optimizer that steps parameters of `model`: it should hold the adapters."""
    if not _hooks:
        _hooks.append(register_optimizer_step_pre_hook(look))
    _awaited[adapters] = weakref.ref(model)


def look(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Before an optimizer's step: nothing once every patched model has taken one."""
    if not _awaited:
        return
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for adapters, reference in list(_awaited.items()):
        model = reference()
        if model is None or not any(id(parameter) in held for parameter in model.parameters()):
            continue
        del _awaited[adapters]
        if warn_of_frozen(adapters.chosen()):
            continue
        named = {(one.name, key): value for one in adapters.every().values() for key, value in one.named_tensors()}
        missing = [name for name, parameter in named.items() if id(parameter) not in held]
        if len(missing) == len(named):
            warnings.warn(
                f"mora: the {type(optimizer).__name__} that steps holds parameters of the CLIP and none of its "
                "adapters, which do not move; expected an optimizer made after mora.patch",
                stacklevel=4,
            )


def warn_of_frozen(adapters: Adapters) -> bool:
    """Say, once, which adapters do not require grad; whether there are any."""
    frozen = [name for name, parameter in adapters.named_tensors() if not parameter.requires_grad]
    if frozen and not adapters.begun:
        warnings.warn(
            f"mora: adapters that do not require grad will not train: {listed(frozen, 4)}; something froze them after "
            "mora.patch, such as lock_image_tower() or get_peft_model(): call it before, or requires_grad_(True) on "
            "mora.adapter_parameters(model)",
            stacklevel=5,
        )
    adapters.begun = adapters.begun or bool(frozen)
    return bool(frozen)


def begin_training(model: nn.Module) -> None:
    """At a patched model's first training forward: say what does not train, and follow weights loaded meanwhile."""
    if not is_patched(model):
        return
    adapters = adapters_of(model)
    if adapters.begun or torch.compiler.is_compiling():
        return
    if not warn_of_frozen(adapters):
        adapters.begun = True
        for _, projection in adapters.projections():
            if not hasattr(projection.outline, "device_mesh"):
                projection.follow(loaded=False)
