"""One instrumented call: bytes at the peak, bytes saved for the backward pass, operators or kernels launched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.case import Provider
from mora_kernels.launches import counted


@dataclass(frozen=True)
class Footprint:
    """What one call of a provider took beyond what was there before.

    Attributes:
        peak: bytes at the highest moment.
        saved: bytes that autograd, and the provider itself, keep from forward to backward.
        saved_square: those of them in tensors of the case's d x d, frozen weights included.
        launches: kernels on a GPU; operators of PyTorch and of ours that would launch one, on a CPU; None unknown.
        kernel_seconds: how long a GPU's kernels ran, without what lay between them; None on a CPU.
    """

    peak: int
    saved: int
    saved_square: int | None
    launches: int | None
    kernel_seconds: float | None


def footprint(provider: Provider, device: str, square: int | None) -> Footprint:
    """Run `provider`, which has run before, under observation."""
    run = provider.run
    if provider.observed is not None:
        run = provider.observed
        run()  # what is built or cached at the first call is there already, as after the rounds of `provider.run`
    owned = {tensor.untyped_storage().data_ptr() for tensor in provider.owned()}
    saved: dict[int, tuple[int, bool]] = {}
    alive: list[Tensor] = []

    def note(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        is_square = square is not None and tuple(tensor.shape[-2:]) == (square, square)
        known = saved.get(storage.data_ptr(), (0, False))
        saved[storage.data_ptr()] = (storage.nbytes(), known[1] or is_square)

    def pack(tensor: Tensor) -> Tensor:
        if torch._C._current_graph_task_id() == -1:  # within a backward pass it is a temporary, not saved for one
            note(tensor)
            alive.append(tensor.detach())  # no storage is counted twice under one address
        return tensor

    counting = counted() if provider.eager and device == "cpu" else nullcontext(None)
    with counting as names, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    for tensor in provider.kept():
        note(tensor)
    alive.clear()
    with observed(device) as seen:
        run()
    return Footprint(
        peak=seen.peak,
        saved=sum(size for address, (size, _) in saved.items() if address not in owned),
        saved_square=None if square is None else sum(size for size, is_square in saved.values() if is_square),
        launches=seen.kernels if device == "cuda" else None if names is None else len(names),
        kernel_seconds=seen.seconds if device == "cuda" else None,
    )


@dataclass
class Seen:
    """What the profiler saw: bytes above the start at the peak, and a GPU's kernels, counted and timed."""

    peak: int = 0
    kernels: int = 0
    seconds: float = 0.0


@contextmanager
def observed(device: str) -> Iterator[Seen]:
    """Profile the block; the result is filled in at its end."""
    seen, cuda = Seen(), device == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    activities = [ProfilerActivity.CUDA] if cuda else [ProfilerActivity.CPU]
    with profile(activities=activities, profile_memory=not cuda) as profiled:
        yield seen
        if cuda:
            torch.cuda.synchronize()
    if cuda:
        seen.peak = torch.cuda.max_memory_allocated() - before
        on_device = [e for e in profiled.events() or [] if e.device_type == torch.autograd.DeviceType.CUDA]
        kernels = [event for event in on_device if "Mem" not in event.name]
        seen.kernels = len(kernels)
        seen.seconds = sum(event.time_range.elapsed_us() for event in kernels) / 1e6
        return
    allocated = 0
    for event in sorted((e for e in raw_events(profiled) if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        allocated += event.nbytes()
        seen.peak = max(seen.peak, allocated)


def raw_events(profiled: profile) -> list:
    """The profiler's own events, with every allocation and release among them."""
    assert profiled.profiler is not None
    return profiled.profiler.kineto_results.events()
