"""Every kernel this package launches goes through `launch`, so that a test can count launches and see which ran."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

_listeners: list[list[str]] = []
_left_out = 0  # blocks of `left_out` that are open

# Operators that put nothing on the device: allocation, and views (which their schema tells).
SILENT = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "detach",
    "lift_fresh",
    "_reshape_alias",
}
SILENT |= {"is_same_size", "_unsafe_view", "unbind"}


def launch(kernel: Any, grid: Sequence[int], *arguments: Any, **options: Any) -> None:
    """Run a Triton kernel on `grid`, on the device of its first tensor and that device's stream; tell those who count.

    Triton itself takes the current device, which need not be the tensors' own.
    """
    options["enable_fp_fusion"] = True  # its default differs between versions
    for names in _listeners:
        names.append(kernel.fn.__name__)
    if _left_out:
        return
    # The interpreter's own operators are no launches.
    with _disable_current_modes() if _listeners else nullcontext(), on_device(arguments):
        kernel[tuple(grid)](*arguments, **options)


def on_device(arguments: Sequence[Any]) -> Any:
    """Return a context in which the device of the first tensor is the current one; one that does nothing if it is."""
    device = next((argument.device for argument in arguments if isinstance(argument, torch.Tensor)), None)
    if device is None or device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


class _Library(TorchDispatchMode):
    """Notes the name of every PyTorch operator that launches something."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[-1]
        quiet = name in SILENT or func.is_view or func.namespace == "mora_kernels"
        result = func(*args, **(kwargs or {}))
        same = isinstance(result, torch.Tensor) and any(result is argument for argument in args)
        if not quiet and not (same and name in ("_to_copy", "contiguous")):
            self.names.append(f"{func.namespace}.{name}")
        return result


@contextmanager
def left_out() -> Iterator[None]:
    """Inside the context no kernel is launched, only told of: what is left is the host's part. Results are garbage."""
    global _left_out
    _left_out += 1
    try:
        yield
    finally:
        _left_out -= 1


@contextmanager
def counted(library: bool = True) -> Iterator[list[str]]:
    """Collect, inside the context, the name of each launch: Triton kernels, and with `library` PyTorch's operators.

    An operator of PyTorch counts as one launch. That is right for a GEMM, an elementwise operator, a reduction of one
    tensor; it holds on the CPU as on a GPU because the operators called are the same.
    """
    names: list[str] = []
    _listeners.append(names)
    try:
        if library:
            with _Library(names):
                yield names
        else:
            yield names
    finally:
        _listeners.pop()  # contexts nest
