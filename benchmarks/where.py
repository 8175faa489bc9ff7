"""Where an epoch of `mora train` goes, part by part: `python -m benchmarks.where --model ViT-B/16 --rows 16 --batch 8`.

Seconds are the process's own (`time.process_time`), in one thread unless OMP_NUM_THREADS says more, so that other jobs
on the machine disturb less than on the clock; the ways to train take turns. GFLOP are PyTorch's count of the matrix
products that an epoch does: its floor at this machine's speed.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.providers.ours import within_keeping
from benchmarks.tables import markdown
from benchmarks.trained import FIELDS, Trained

PARTS = ("batches", "checks", "forward", "backward", "optimizer", "rest of training", "validation", "all")


class Clock:
    """Process seconds of an epoch's parts, and the products of training and validation."""

    def __init__(self, name: str, shape: dict[str, Any]) -> None:
        self.way, self.spent = Trained(name, shape, "cpu"), defaultdict(float)
        self.rounds: list[dict[str, float]] = []
        engine, model = self.way.trainer.engine, self.way.trainer.model
        self.inside = within_keeping(model, lambda: self.running())  # one block for all epochs, as `Trainer.fit` does
        engine.forward = self.timed("forward", engine.forward)  # type: ignore[method-assign]
        engine.begin_epoch = self.timed("checks", engine.begin_epoch)  # type: ignore[method-assign]
        engine.accelerator.backward = self.timed("backward", engine.accelerator.backward)
        engine.optimizer.step = self.timed("optimizer", engine.optimizer.step)
        self.batches, engine.batches = engine.batches, self.timed_batches  # type: ignore[method-assign]

    def run(self, call: Callable[[], None]) -> float:
        """Process seconds of a call within the one block of the run."""
        self.running = call
        began = time.process_time()
        self.inside()
        return time.process_time() - began

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, its seconds counted."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.spent[part] += time.process_time() - began

        return counted

    def timed_batches(self, split: str, rows: list[list[int]]) -> Iterator[Any]:
        """The batches of a split, the seconds until each is there counted."""
        found = iter(self.batches(split, rows))
        following = self.timed("batches", lambda: next(found, None))
        while (batch := following()) is not None:
            yield batch

    def find_out(self) -> None:
        """What happens once in a run: towers find out where they can be cut, a substitute passes the frozen blocks."""
        self.run(self.way.validate)

    def round(self) -> None:
        """One epoch."""
        self.spent.clear()
        training = self.run(self.way.train)
        inner, validation = dict(self.spent), self.run(self.way.validate)
        rest = training - sum(inner.values())
        self.rounds.append({**inner, "rest of training": rest, "validation": validation, "all": training + validation})

    def medians(self) -> dict[str, float]:
        """Of every part over the rounds."""
        return {part: median(each.get(part, 0.0) for each in self.rounds) for part in PARTS}

    def products(self) -> tuple[float, float]:
        """GFLOP of an epoch's training and of its validation."""
        found = []
        for run in (self.way.train, self.way.validate):
            with FlopCounterMode(display=False) as counter:
                self.run(run)
            found.append(counter.get_total_flops() / 1e9)
        return found[0], found[1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.where", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="ViT-B/16", choices=("ViT-B/16", "tiny"))
    parser.add_argument("--rows", type=int, default=16, help="of each split")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=FIELDS, default=list(FIELDS))
    options = parser.parse_args()
    shape = {"model": options.model, "rows": options.rows, "batch": options.batch, "missing": 0.7, "dropout": 0.1}
    clocks = {name: Clock(name, shape) for name in options.ways}
    for clock in clocks.values():
        clock.find_out()
    count = {name: clock.products() for name, clock in clocks.items()}
    for _ in range(options.rounds):
        for clock in clocks.values():
            clock.round()
    found = {name: clock.medians() for name, clock in clocks.items()}
    lines = [[part, *(f"{found[name][part]:.3f} s" for name in clocks)] for part in PARTS]
    for place, part in enumerate(("training", "validation")):
        lines.append([f"GFLOP of {part}", *(f"{count[name][place]:,.0f}" for name in clocks)])
    print(f"{torch.get_num_threads()} thread(s), {options.rounds} rounds of {options.rows} rows in each split")
    print(markdown(["", *clocks], lines), flush=True)


if __name__ == "__main__":
    main()
