"""`mora.Sweep` and `mora.sweep`: every cell of a plan, the winner by validation, and its test."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from mora.data.dataset import Dataset
from mora.runs.backbone import Backbone
from mora.sweeping.outcome import Outcome
from mora.sweeping.plan import Plan
from mora.sweeping.run import Sweeper
from mora.system.lock import FolderLock


class Sweep(Plan):
    """A search over the configuration of a training; a wrong value raises a ValueError that names the argument.

        sweep = mora.Sweep.make("openmoji", "sweep", lr=[1e-3, 1e-2], rank=[4, 8], epochs=5, missing="both:0.7")
        found = sweep.run(jobs=2)
        print(found.winner.values, found.winner.spread, found.tested())

    Its fields are those of `mora.sweeping.plan.Plan`: base, fields, seeds, search, trials, search_seed, prune.
    """

    def run(
        self,
        jobs: int = 1,
        backbone: Backbone | None = None,
        datasets: Mapping[str, Dataset] | None = None,
        console: Any = None,
        test: bool = True,
    ) -> Outcome:
        """Train every cell that is not over yet, choose by validation, test the winner, write the files.

        Args:
            jobs: cells at once, a process each; 1 trains here, one after another.
            backbone: a CLIP of your own, instead of the one `base` names; it is left as it is.
            datasets: splits of your own; "test" is not touched before the winner is chosen.
            console: a `rich` console to speak to.
            test: whether the winner is measured on the test split in the end; a later call can still do it.

        Raises:
            ValueError: the folder holds another plan or something else; every setting failed.
            ImportError: a package is absent.
            OSError: the folder cannot be written.
        """
        sweeper = Sweeper(self, jobs, backbone, datasets, console)
        with FolderLock(self.folder, say=sweeper.say):
            return sweeper.run(test)


def sweep(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    jobs: int = 1,
    console: Any = None,
    test: bool = True,
    **fields: Any,
) -> Outcome:
    """Train every setting with every seed, choose by mean validation, test the winner: `Sweep.make(...).run(jobs)`.

        found = mora.sweep("openmoji", "sweep", lr=[1e-3, 1e-2], rank=[4, 8], seeds=[0, 1, 2], missing="both:0.7")
        print(found.winner.values, found.winner.spread, found.tested())

    The same call goes on where an earlier one was stopped.

    Args:
        data: "openmoji", a folder of a data set, or a CSV / JSONL / Parquet manifest.
        out: the folder of the sweep; every cell is a run folder in it.
        jobs: cells at once, a process each.
        console: a `rich` console to speak to.
        test: whether the winner is measured on the test split in the end.
        fields: arguments of `mora.train`, a list (or a `mora.sweeping.space.Range`) for what is searched, and those of
            `Sweep.make`: seeds, search, trials, search_seed, prune.

    Raises:
        ValueError: an argument, the data or the folder is not as expected; the message names it.
        ImportError: a package of the extra `train` (or `sweep`, for search="tpe") is absent.
        OSError: the folder cannot be written.
    """
    return Sweep.make(data, out, **fields).run(jobs, console=console, test=test)
