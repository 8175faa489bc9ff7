"""What a frozen tower holds, byte for byte: how a row computed before is known to be the row one would compute now."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from mora.system.hooks import watched_itself

SIMPLE = (bool, int, float, str, type(None))


def digest_of(tensors: Iterable[Tensor]) -> bytes | None:
    """XXH3 (128 bits) of dtypes, shapes and bytes; None where a tensor is no plain one in the CPU's memory.

    It reads everything, 30 ms for the 86 million weights of ViT-B/16 on two cores, and waits for nothing: on an
    accelerator the answer would have to be waited for, so there is none.
    """
    total = xxhash.xxh3_128()
    for tensor in tensors:
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
        if not plain or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
            return None
        total.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        total.update(tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return total.digest()


def form_of(modules: Iterable[nn.Module]) -> list[Any] | None:
    """Which modules compute, in which mode and with which settings; None where hooks are to see every call."""
    found: list[Any] = []
    for module in modules:
        if watched_itself(module):
            return None
        found.append(module)
        found += [value for value in vars(module).values() if type(value) in SIMPLE]
    return found


def contents(model: nn.Module, but: Iterable[nn.Module], given: Tensor, frozen: bool) -> tuple[Any, ...] | None:
    """What a row of `given` through a model depends on, compared by value; None where that cannot be known.

    Args:
        model: the CLIP.
        but: modules that have no part in it.
        given: the input.
        frozen: whether only tensors count that are not trained.
    """
    left_out = {id(module) for module in but}
    modules = [module for module in model.modules() if id(module) not in left_out]
    form = form_of(modules)
    if form is None:
        return None
    tensors = [t for module in modules for t in (*module._parameters.values(), *module._buffers.values())]
    there = [t for t in tensors if t is not None and not (frozen and t.requires_grad)]
    digest = digest_of([given, *there])
    return None if digest is None else (digest, form, torch.get_num_threads())
