"""Fresh processes: forked, within milliseconds, from a server that has imported what most of them need.

One server serves a whole process of pytest. Its environment and its libraries are as they were when it began: what a
test changes of them it hands over.
"""

import multiprocessing
import os
import socket
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path
from typing import NamedTuple

import torch

FRESH = multiprocessing.get_context("forkserver")
PRELOADED = (
    "tests.training.fakes", "tests.mora.models", "mora.training.trainer", "mora.metrics", "mora.savings.cache",
    "mora.data.sources.manifest", "accelerate", "open_clip", "torchmetrics.classification",
)  # fmt: skip


def begin() -> None:
    """Start the server, unless there is one."""
    FRESH.set_forkserver_preload([*PRELOADED])
    forkserver.ensure_running()


def free_port():
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Ended(NamedTuple):
    code: int
    out: str
    err: str


class Running:
    """`target(*arguments)` in a fresh process, which ends with the exit code that it returns.

    `places` come first on its path.
    """

    def __init__(self, target, *arguments, environment=(), places=()):
        self.folder = tempfile.TemporaryDirectory()
        self.paths = [Path(self.folder.name) / name for name in ("out", "err")]
        begin()
        paths = [*map(str, places), *sys.path]
        begun = self.paths, dict(environment), multiprocessing.get_start_method(), paths
        self.process = FRESH.Process(target=call, args=(begun, target, arguments))
        self.process.start()

    def end(self, timeout=280) -> Ended:
        """Wait for its end: the exit code, and all that it wrote."""
        self.process.join(timeout)
        late = self.process.is_alive()
        if late:
            self.process.kill()
            self.process.join()
        out, err = (path.read_text(errors="replace") if path.exists() else "" for path in self.paths)
        self.folder.cleanup()
        if late:
            raise TimeoutError(f"killed after {timeout} s\n{out[-2000:]}{err[-2000:]}")
        return Ended(self.process.exitcode, out, err)


def call(begun, target, arguments):
    paths, environment, method, sys.path[:] = begun
    multiprocessing.set_start_method(method, force=True)  # not that of this process
    for number, path in enumerate(paths, 1):
        file = os.open(path, os.O_CREAT | os.O_WRONLY)
        os.dup2(file, number)
        os.close(file)
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.exit(target(*arguments))
