"""Processes that read samples: how many there may be, and what is said when one is killed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

PER_CORE = 8
LOST = re.compile(r"DataLoader worker \(pid(?:\(s\))? (?P<pids>[\d, ]+)\)(?: is killed by signal: (?P<signal>[\w ]+))?")


def check_workers(workers: int | None) -> None:
    """Raise ValueError for more processes than `PER_CORE` for each core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers is not None and workers > PER_CORE * cores:
        raise ValueError(
            f"workers: got {workers}, expected at most {PER_CORE * cores}: {PER_CORE} for each of the {cores} cores"
        )


@contextmanager
def lost_workers() -> Iterator[None]:
    """Turn torch's RuntimeError about a worker that died into a ChildProcessError that names it and what to do.

    torch raises it wherever the main thread is when the worker dies, so the block is the whole of the work.
    """
    try:
        yield
    except RuntimeError as error:
        found = LOST.search(str(error))
        if found is None:
            raise
        how = f"was killed by signal {found['signal'].strip()}" if found["signal"] else "ended unexpectedly"
        raise ChildProcessError(
            f"workers: the process {found['pids']} that reads samples {how}, expected it to live: memory may have run "
            "out; use fewer --workers, or --workers 0 to see the error itself"
        ) from error
