"""Signals that ask a process to end: heard at once, or kept until the work at hand is on disk."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

# Ctrl-C, what schedulers and `kill` send, and a terminal that is gone; the last one does not exist everywhere.
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):  # an interrupt, as Python's own
    """A signal asked this process to end.

    Attributes:
        number: of the signal; a shell's exit code is 128 more.
        told: whether the user has read where the work stopped.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number, self.told = number, False


def hear(number: int, frame: FrameType | None) -> None:
    """A handler that raises `Stopped`, so that what is half done is cleared away."""
    raise Stopped(number)


@contextmanager
def heard() -> Iterator[None]:
    """Inside the block, a signal that would end the process at once raises `Stopped`; Ctrl-C stays as it is."""
    mine = [number for number in ENDING if is_main() and signal.getsignal(number) is signal.SIG_DFL]
    for number in mine:
        signal.signal(number, hear)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)


def is_main() -> bool:
    """Whether this is the thread that Python hands signals to."""
    return threading.current_thread() is threading.main_thread()


class Stop:
    """Inside the block, a signal that asks to end raises `Stopped` at once, or, while `waiting`, is remembered.

    A second signal does not wait. Signals that were ignored stay ignored; a handler that was there before is called at
    the end of the block, and where there was none the process ends by the signal, as it would have without this.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.waiting = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        for number in ENDING if is_main() else ():
            handler = signal.getsignal(number)
            if handler is not None and handler is not signal.SIG_IGN:  # None: set by C code, which cannot be put back
                self.before[number] = handler
                signal.signal(number, self.take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if isinstance(error, Stopped) and self.before.get(error.number, hear) not in (hear, signal.default_int_handler):
            signal.raise_signal(error.number)

    def take(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        late, self.number = self.number is not None, number
        if late or not self.waiting:
            raise Stopped(number)

    def asked(self) -> bool:
        """Whether a signal came."""
        return self.number is not None
