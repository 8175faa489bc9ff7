"""What the processes of one run do and decide together, so that none waits for another for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

# How gloo's and NCCL's errors read that torch does not raise as its own kind.
BROKEN = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo", "NCCL", "Socket")


def on_main(accelerator: Any, work: Callable[[], None]) -> None:
    """Do `work` on the main process; what it raises is raised in every process."""
    error: Exception | None = None
    if accelerator.is_main_process:
        try:
            work()
        except Exception as found:
            error = found
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        error = broadcast_object_list([error])[0]
    if error is not None:
        raise error


def anywhere(accelerator: Any, *flags: bool) -> list[bool]:
    """Which of some flags are up in any process; one exchange for all of them."""
    if accelerator.num_processes == 1:
        return list(flags)
    found = accelerator.reduce(torch.tensor([float(flag) for flag in flags], device=accelerator.device), "sum")
    return [bool(value > 0) for value in found.tolist()]


def everyones(value: Any) -> list[Any]:
    """The value of every process, in their order."""
    from accelerate.utils import gather_object

    return gather_object([value])


@contextmanager
def lost_processes(accelerator: Any) -> Iterator[None]:
    """Turn the error of an exchange with a process that ended into a ConnectionError that says how to go on."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, torch.distributed.DistError) or any(word in str(error) for word in BROKEN)
        if accelerator.num_processes == 1 or not lost:
            raise
        reason = " ".join(str(error).split())[:200]
        raise ConnectionError(
            f"processes: process {accelerator.process_index} of {accelerator.num_processes} lost another one "
            f"({reason}), expected all to live; start all again with --resume"
        ) from error
