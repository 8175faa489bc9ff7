"""Work in processes of its own, one for each item: a process that dies takes nothing along."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection
from typing import Any, NamedTuple, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")
PRELOADED = ("accelerate", "open_clip", "peft", "torchmetrics.classification", "mora.training.trainer")
KINDS = (ImportError, ValueError, OSError, RuntimeError)


class LostProcessError(ChildProcessError):
    """A process ended without an answer."""


class Answer(NamedTuple):
    """What a process says at its end: what the work returned, or the error that it raised."""

    value: Any = None
    error: BaseException | None = None


def each(
    work: Callable[[T], R], items: Sequence[T], jobs: int = 1, threads: int | None = None
) -> Iterator[tuple[int, R | LostProcessError]]:
    """(place, what `work` returned) of every item as they end; in its place `LostProcessError` for one that died.

    Args:
        work: a function of a module; with several jobs it and its items are pickled.
        items: what it is called with.
        jobs: how many processes work at once; 1 works in this one.
        threads: of PyTorch on the CPU, for each; None leaves them as they are.

    Raises what `work` raises; processes that still work are asked to end, and waited for, before.
    """
    if jobs == 1:
        with limited(threads):
            for place, item in enumerate(items):
                yield place, work(item)
        return
    context, waiting = starting(), list(enumerate(items))
    running: dict[Any, tuple[int, Any]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                place, item = waiting.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=answer, args=(work, item, threads, theirs))
                process.start()
                theirs.close()
                running[ours] = place, process
            for pipe in connection.wait(list(running)):
                place, process = running.pop(pipe)
                yield place, received(pipe, process)
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join()


def received(pipe: Any, process: Any) -> Any:
    """What a process returned; its error is raised; `LostProcessError` where it ended without a word."""
    try:
        found = pipe.recv()
    except EOFError:
        process.join()
        code = process.exitcode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return LostProcessError(f"its process {how}: memory may have run out")
    finally:
        pipe.close()
    process.join()
    if found.error is not None:
        raise found.error
    return found.value


def answer(work: Callable[[T], Any], item: T, threads: int | None, pipe: Any) -> None:
    """The life of a process: work, answer, end. SIGTERM ends it; Ctrl-C is for the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        with limited(threads):
            found = Answer(work(item))
    except Exception as error:
        kind = next((kind for kind in KINDS if isinstance(error, kind)), RuntimeError)
        found = Answer(error=kind(str(error) or type(error).__name__))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGTERM)
    with suppress(BrokenPipeError):  # nobody is there any more
        pipe.send(found)


def end_with_parent() -> None:
    """Ask this process to end when the one that started it is gone, whatever ended that one."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def starting() -> Any:
    """How processes start: from one that has imported everything, where the system can; importing takes long."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *PRELOADED])
    return context


@contextmanager
def limited(threads: int | None) -> Iterator[None]:
    """PyTorch on so many CPU threads within the block; None changes nothing."""
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(before)
