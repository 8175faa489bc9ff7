"""Which modules may be replaced: those whose computation is known, whose weights are plain, and that nothing shares.

What stands for an attention or a projection computes what the class does, not what an instance may have been taught;
so anything that is not stock is refused by name, before anything is changed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from inspect import isfunction
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from mora.bases import base_of
from mora.projection.site import Site

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Packages whose modules run their children as everybody knows; those of others are tried before they are trusted.
TRUSTED = ("torch", "open_clip", "transformers", "mora")
UNDO = {
    "bitsandbytes": "linears that stand alone may be quantised, packed q, k, v and what stands beside them may not",
    "torchao": "linears that stand alone may be quantised, packed q, k, v may not",
    "peft": "call merge_and_unload() first, or leave attention out of its target_modules",
    "accelerate": "packed q, k, v may not be dispatched or offloaded: leave adapted blocks out of the device map",
    "deepspeed": "W_eff needs whole weights: train adapters by DDP, FSDP2 or ZeRO stage 1 or 2",
}


def class_name(thing: object) -> str:
    """Where the class of an object is from, and its name."""
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def advice(thing: object) -> str:
    """What to do about a module or tensor of another library, "" when that is not known."""
    root = type(thing).__module__.partition(".")[0]
    root = "accelerate" if hasattr(thing, "_hf_hook") else root
    return f": {UNDO[root]}" if root in UNDO else ""


def altered(module: nn.Module, stock: type[nn.Module]) -> str:
    """Why `module` does not compute what `stock` does, in words; "" when it does."""
    if "forward" in vars(module):
        return f"whose forward was replaced on the instance{advice(module)}"
    own = type(module)
    if own.forward is not stock.forward or own.__call__ is not nn.Module.__call__:
        return f"whose forward is its own{advice(module)}"
    if not stock.forward.__module__.startswith(stock.__module__.partition(".")[0]):
        return f"whose class got another forward from {stock.forward.__module__}"
    return ""


def packed_stock(attention: nn.Module) -> type[nn.Module] | None:
    """Which packed attention `attention` is an instance of: torch's or open_clip's; None for any other."""
    own = getattr(sys.modules.get("open_clip.transformer"), "Attention", None)
    return next((kind for kind in (nn.MultiheadAttention, own) if kind and isinstance(attention, kind)), None)


def check_packed(attention: nn.Module, path: str) -> None:
    """Raise ValueError unless a packed attention is stock, its weights are plain, and its output projection is, too."""
    stock = packed_stock(attention)
    why = "which is another class" if stock is None else altered(attention, stock)
    if why:
        raise ValueError(
            f"model: {path} is a {class_name(attention)}, {why}{advice(attention) if stock is None else ''}; expected "
            "nn.MultiheadAttention or open_clip's Attention as they are: adapting would change what it computes"
        )
    check_plain(attention, ("in_proj_weight", "in_proj_bias"), path)
    if stock is nn.MultiheadAttention:  # it reads out_proj's weight and never calls it
        check_linear(attention.out_proj, f"{path}.out_proj", packed=True)


def check_linear(linear: object, path: str, target: str = "", packed: bool = False) -> nn.Linear:
    """Return `linear` if it is a stock `nn.Linear` on weights that are plain or of a known base; else ValueError."""
    sought = f"targets: {target!r} looked for" if target else "model: looked for"
    if isinstance(linear, Site):  # checked when it was put there, for another adapter
        return linear  # type: ignore[return-value]
    if not isinstance(linear, nn.Linear):
        raise ValueError(f"{sought} an nn.Linear at {path}, found {class_name(linear)}{advice(linear)}")
    if not packed and base_of(linear, path) is not None:
        return linear
    if why := altered(linear, nn.Linear):
        raise ValueError(f"{sought} a plain nn.Linear at {path}, found {class_name(linear)}, {why}")
    check_plain(linear, ("weight", "bias"), path)
    return linear


def check_plain(module: nn.Module, names: Iterable[str], path: str) -> None:
    """Raise ValueError unless the named parameters are the module's own, dense, whole and floating-point."""
    for name in names:
        if name not in module._parameters:
            raise ValueError(
                f"model: {path}.{name} is computed from {', '.join(computed_from(module))}, expected a "
                "parameter of its own: remove weight norm, pruning, parametrizations or flat parameters first"
            )
        parameter: Any = module._parameters[name]
        if parameter is None:
            continue  # no bias; or q, k, v of other widths, which the slot names
        if hasattr(parameter, "ds_id"):
            raise ValueError(f"model: {path}.{name} is partitioned by DeepSpeed ZeRO-3: {UNDO['deepspeed']}")
        if hasattr(parameter, "device_mesh"):
            raise ValueError(
                f"model: {path}.{name} is sharded (DTensor), expected a whole one: patch first, then fully_shard"
            )
        if type(parameter) is not nn.Parameter or type(parameter.data) is not Tensor:
            raise ValueError(
                f"model: {path}.{name} is a {class_name(parameter)}, expected a plain tensor{advice(parameter)}"
            )
        if parameter.dtype not in FLOATS:
            raise ValueError(
                f"model: {path}.{name} has dtype {parameter.dtype}, expected one of "
                f"{', '.join(str(dtype).removeprefix('torch.') for dtype in FLOATS)}"
            )
        if name.endswith("weight") and parameter.dim() != 2:
            raise ValueError(f"model: {path}.{name} has shape {tuple(parameter.shape)}, expected a matrix")


def computed_from(module: nn.Module) -> list[str]:
    """The parameters a module has instead of a plain weight."""
    return [name for name, _ in module.named_parameters()] or ["none of its own"]


def registers(module: nn.Module, name: str) -> bool:
    """Whether `name` is a child or a parameter of `module` itself, so that setting it there has an effect."""
    return name in module._modules or name in module._parameters


def inside(module: nn.Module, name: str) -> str:
    """The path within `module` of what registers `name`: "" for itself, else the module a forwarding wrapper holds."""
    if registers(module, name):
        return ""
    wanted = getattr(module, name, None)
    found = [path for path, part in module.named_modules() if registers(part, name) and getattr(part, name) is wanted]
    return found[0] if len(found) == 1 else ""


def located(module: Any, path: str) -> tuple[str, Any]:
    """(where, what) `path` names below `module`, seen through wrappers: the path with them in it, None if nothing."""
    here: list[str] = []
    for name in path.split(".") if path else ():
        owner = inside(module, name) if isinstance(module, nn.Module) else ""
        here += [owner, name] if owner else [name]
        module = getattr(module, name, None)
    return ".".join(here), module


def check_alone(model: nn.Module, slots: Iterable[Any], replaced: dict[str, nn.Module]) -> None:
    """Raise ValueError when something that is to be replaced is also used elsewhere.

    Args:
        model: the CLIP.
        slots: of every block of its towers, adapted or not: each runs once.
        replaced: the modules that will be replaced, by path: each is held in one place.
    """
    seen: dict[int, str] = {}
    for slot in slots:
        for one in slot.held:
            if id(one) in seen:
                raise ValueError(
                    f"model: {slot.path} and {seen[id(one)]} are one object, expected blocks of their own: adapting "
                    "one would adapt the other; copy.deepcopy it"
                )
        seen |= {id(one): slot.path for one in slot.held}
    places: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for key, child in module._modules.items():
            places.setdefault(id(child), []).append(f"{name}.{key}".lstrip("."))
    for path, module in replaced.items():
        if len(held := places.get(id(module), [])) > 1:
            raise ValueError(
                f"model: {path} is also held as {', '.join(p for p in held if p != path)}, which would keep the module "
                "without adapters; expected one place"
            )
    check_untied(model, replaced)


def check_untied(model: nn.Module, replaced: dict[str, nn.Module]) -> None:
    """Raise ValueError when a weight that merging would write shares memory with another parameter."""
    own = {id(m): path for path, m in replaced.items()}
    spans = [(path, *span(weight)) for path, m in replaced.items() for weight in weights_of(m)]
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is None or (id(module) in own and key in ("in_proj_weight", "weight")):
                continue
            start, end = span(parameter)
            for path, first, last in spans:
                if start < last and first < end:
                    raise ValueError(
                        f"model: the weight of {path} is tied to {name}.{key}, expected weights of its own: merging "
                        "would change both; give each an nn.Parameter of its own"
                    )
    ordered = sorted(spans, key=lambda one: one[1:])
    for one, other in pairwise(ordered):
        if other[1] < one[2]:
            raise ValueError(
                f"model: the weights of {one[0]} and {other[0]} are tied, expected weights of their own: merging would "
                "write both; give each an nn.Parameter of its own"
            )


def weights_of(module: nn.Module) -> list[Tensor]:
    """The weights of a replaced module that merging may write."""
    found = [module._parameters.get(name) for name in ("in_proj_weight", "weight")]
    return [weight for weight in found if weight is not None]


def span(tensor: Tensor) -> tuple[int, int]:
    """Where a dense tensor lies in memory, [start, end); what has no memory lies nowhere but is itself."""
    if tensor.is_meta or not hasattr(tensor, "data_ptr") or hasattr(type(tensor), "__tensor_flatten__"):
        return id(tensor), id(tensor) + 1
    try:
        start = tensor.data_ptr()
    except RuntimeError:  # a tensor subclass without storage
        return id(tensor), id(tensor) + 1
    return start, start + tensor.numel() * tensor.element_size()


def untrusted(model: nn.Module, paths: Iterable[str]) -> list[str]:
    """Modules on the way from `model` to the given paths that may not run what they hold, by class; [] when all do."""
    found: dict[str, None] = {}
    for path in paths:
        module = model
        for name in ["", *path.split(".")]:
            module = getattr(module, name) if name else module
            if not taught_by(module) <= set(TRUSTED):
                found[class_name(module)] = None
    return list(found)


def taught_by(module: nn.Module) -> set[str]:
    """The packages that wrote what `module` does: its classes, their methods, and methods replaced on the instance."""
    methods = [value for kind in type(module).__mro__ for value in vars(kind).values() if isfunction(value)]
    methods += [value for name, value in vars(module).items() if callable(value) and hasattr(type(module), name)]
    written = {str(getattr(method, "__module__", "")) for method in methods} | {type(module).__module__}
    return {name.partition(".")[0] for name in written}
