"""Many runs at once, each on one CPU thread: results do not depend on how many ran beside them."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from mora.demo.prefixes import Prefixes
from mora.demo.settings import Settings
from mora.demo.training import Run, train


class Job(NamedTuple):
    """One run to do: settings (they may differ between the jobs of a grid), method, seed."""

    settings: Settings
    method: str
    seed: int


class Progress(NamedTuple):
    """One epoch of one job is over."""

    job: int
    epoch: int
    loss: float
    validation: float


class Worker:
    """What a worker process was given at its start."""

    base: Any
    prefixes: Prefixes
    messages: Any


def start(base: Any, prefixes: Prefixes, messages: Any) -> None:
    """Prepare a worker process."""
    torch.set_num_threads(1)
    Worker.base, Worker.prefixes, Worker.messages = base, prefixes, messages


def work(number: int, job: Job) -> Run:
    """Do one job in a worker process."""

    def report(epoch: int, loss: float, validation: float) -> None:
        Worker.messages.put(Progress(number, epoch, loss, validation))

    return train(Worker.base, Worker.prefixes, job.settings, job.method, job.seed, report)


@contextmanager
def one_thread(device: str) -> Iterator[None]:
    """PyTorch on one CPU thread within the block; on a GPU nothing changes."""
    before = torch.get_num_threads()
    try:
        if device == "cpu":
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)


def train_all(
    base: Any, prefixes: Prefixes, jobs: list[Job], at_once: int, progress: Callable[[Progress], None]
) -> list[Run]:
    """Every job's run, in order; `progress` is told of every epoch of every job.

    On the CPU `at_once` processes share the prefixes' memory; with one, or on a GPU, jobs run here one after another.
    """
    device = jobs[0].settings.device
    at_once = min(at_once, len(jobs)) if device == "cpu" else 1
    if at_once == 1:
        runs = []
        with one_thread(device):
            for number, job in enumerate(jobs):
                runs.append(
                    train(
                        base,
                        prefixes.to(device),
                        job.settings,
                        job.method,
                        job.seed,
                        lambda *epoch, number=number: progress(Progress(number, *epoch)),
                    )
                )
        return runs
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    pool = concurrent.futures.ProcessPoolExecutor(at_once, context, start, (base, prefixes, messages))
    try:
        futures = [pool.submit(work, number, job) for number, job in enumerate(jobs)]
        pending = set(futures)
        while pending:
            done, pending = concurrent.futures.wait(pending, timeout=0.1)
            for message in waiting(messages):
                progress(message)
            for future in done:
                future.result()
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def waiting(messages: Any) -> Iterator[Progress]:
    """What lies in the queue now."""
    while True:
        try:
            yield messages.get_nowait()
        except queue.Empty:
            return
