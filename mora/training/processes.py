"""What the processes of one run do and decide together, so that none waits for another for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def on_main(accelerator: Any, work: Callable[[], None]) -> None:
    """Do `work` on the main process; what it raises is raised in every process."""
    error: Exception | None = None
    if accelerator.is_main_process:
        try:
            work()
        except (ValueError, OSError) as found:
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
