"""What a training says: train.log for people, metrics.jsonl for programs, a progress bar where somebody watches."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from mora.runs.run import LOG, METRICS
from mora.system.messages import printable

LOGS = (METRICS, LOG)
PLAIN_SECONDS, SHORT_SECONDS = 30.0, 5.0


class Log:
    """The two files of a run, and the terminal.

    Args:
        folder: the run folder.
        main: whether this process is the one that writes and speaks.
        console: a `rich` console; None makes one on stderr.
    """

    def __init__(self, folder: Path, main: bool, console: Any = None) -> None:
        self.folder, self.main = folder, main
        if main and console is None:
            from rich.console import Console

            console = Console(stderr=True)
        self.console = console
        self.bar: Any = None
        self.task: Any = None
        self.said = self.started = time.perf_counter()
        self.done_before = self.steps = 0

    def event(self, kind: str, **values: Any) -> None:
        """Append one line of JSON to metrics.jsonl."""
        if self.main:
            append(self.folder / METRICS, json.dumps({"event": kind, **values}))

    def say(self, text: str) -> None:
        """Append a line to train.log and show it."""
        if self.main:
            self.said, text = time.perf_counter(), printable(text)
            append(self.folder / LOG, f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}")
            self.show(text)

    def show(self, text: str) -> None:
        """Show a line, and do not write it; a terminal that is gone is no reason to end a run."""
        if self.main:
            with suppress(OSError):
                self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def check(self) -> None:
        """Raise ValueError when one of the two files is a link or no file: it is appended to and cut."""
        for path in (self.folder / name for name in LOGS):
            if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
                raise ValueError(
                    f"{path}: got {'a link' if path.is_symlink() else 'no file'}, expected a file of the run"
                )

    def sizes(self) -> dict[str, int]:
        """Bytes of both files, which are on disk then: what a checkpoint remembers."""
        sizes = {}
        for name in LOGS:
            path = self.folder / name
            sizes[name] = 0
            if path.is_file():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
                    sizes[name] = os.fstat(file.fileno()).st_size
        return sizes

    def cut(self, sizes: Mapping[str, int]) -> None:
        """Forget what was written after a checkpoint: the steps it tells of are done again.

        Whatever other names `sizes` has, only the two files of this run are touched.
        """
        for name in LOGS:
            path = self.folder / name
            if self.main and path.is_file() and path.stat().st_size > sizes[name]:
                with open(path, "rb+", opener=no_link) as file:
                    file.truncate(sizes[name])

    def start(self, steps: int, done: int) -> None:
        """Begin to show progress, `done` of `steps` steps being over."""
        self.steps, self.done_before = steps, done
        self.said = self.started = time.perf_counter()
        if not self.main or not self.console.is_terminal:
            return
        self.bar = progress_bar(self.console)
        self.task = self.bar.add_task("training", total=steps, completed=done, facts="")
        self.bar.start()

    def advance(self, description: str, step: int, loss: float, throughput: float) -> None:
        """Show one step more; without a terminal, a line every half minute."""
        if not self.main:
            return
        facts = f"loss {loss:.4f}  {throughput:,.0f} samples/s"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, description=description, facts=facts)
        elif time.perf_counter() - self.said > PLAIN_SECONDS:
            self.say(f"{description}  step {step}/{self.steps}  {facts}  left {clock(self.left(step))}")

    @contextmanager
    def filling(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar of its own for work before the training; the block is given what moves it."""
        done, said, began = 0, time.perf_counter(), time.perf_counter()
        with progress_bar(self.console) if self.main and self.console.is_terminal else nullcontext() as bar:
            task = None if bar is None else bar.add_task(title, total=total, facts="")

            def advance(count: int) -> None:
                nonlocal done, said
                done += count
                if bar is not None:
                    bar.advance(task, count)
                elif time.perf_counter() - said > PLAIN_SECONDS and done < total:
                    said = time.perf_counter()
                    self.say(f"{title}  {done:,}/{total:,}  left {clock((said - began) / done * (total - done))}")

            yield advance
        if time.perf_counter() - began > SHORT_SECONDS:
            self.say(f"{title}: {total:,} rows in {clock(time.perf_counter() - began)}")

    def left(self, step: int) -> float:
        """Seconds until the last step at the pace so far."""
        return (time.perf_counter() - self.started) / max(1, step - self.done_before) * (self.steps - step)

    def stop(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def progress_bar(console: Any) -> Any:
    """A bar with a count, some facts, and the time left."""
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[facts]}"),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
    )


def append(path: Path, line: str) -> None:
    """Append a line to a file, at once and whole."""
    try:
        with open(path, "ab", buffering=0, opener=no_link) as file:
            data = (line + "\n").encode(errors="backslashreplace")
            if (written := file.write(data)) != len(data):
                os.truncate(path, os.fstat(file.fileno()).st_size - (written or 0))
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk does not say which file
        raise


def no_link(path: str, flags: int) -> int:
    """Open a file of the run, never through a link: that could lead to any file."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
