"""Processes that read samples: how many there may be, which signals they leave to others, what is said of a death."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mora.system.machine import cores
from mora.system.signals import ENDING

PER_CORE = 8
LOST = re.compile(r"DataLoader worker \(pid(?:\(s\))? (?P<pids>[\d, ]+)\)(?: is killed by signal: (?P<signal>[\w ]+))?")


def check_workers(workers: int | None) -> None:
    """Raise ValueError for more processes than `PER_CORE` for each core that this process may use."""
    there = cores()
    if workers is not None and workers > PER_CORE * there:
        raise ValueError(
            f"workers: got {workers}, expected at most {PER_CORE * there}: {PER_CORE} for each of the {there} cores"
        )


def leave_signals(worker: int) -> None:
    """A loader's `worker_init_fn`: signals to the whole group of processes are for the main one, which ends this one.

    The main one needs its workers until the step at hand is done and its checkpoint written.
    """
    for number in ENDING:
        signal.signal(number, leave_first if number == signal.SIGTERM else signal.SIG_IGN)


def leave_first(number: int, frame: FrameType | None) -> None:
    """Leave out one SIGTERM, not all: torch and `multiprocessing` end a worker that is stuck by further ones."""
    signal.signal(number, signal.SIG_DFL)


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
