"""A sweep from beginning to end: rounds of cells, the files after each, the test of the winner at the end.

sweep.json        plan, rows, settings, winner, versions; written anew after every cell
plot.png          validation over what was searched
runs/003-seed1/   a run folder for every cell: setting 3 with seed 1
prefixes/         rows past the frozen blocks, which all cells share; gone when the sweep is over
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from mora.data.dataset import Dataset
from mora.data.views import thinned
from mora.evaluation.report import print_table
from mora.runs.backbone import Backbone, load_backbone
from mora.sweeping import plot
from mora.sweeping.cell import (
    DONE,
    FAILED,
    PRUNED,
    SEEN,
    Cell,
    Row,
    check_cell,
    end,
    ended,
    row_of,
    score_test,
    seconds_of,
    train_cell,
)
from mora.sweeping.outcome import SHOWN, Outcome, remarks, table
from mora.sweeping.plan import Plan, check_same_plan
from mora.sweeping.search import Told, search_of
from mora.sweeping.space import words
from mora.sweeping.workers import LostProcessError, each
from mora.system.checks import check_whole
from mora.system.files import read_json, write_bytes, write_json
from mora.system.folders import remove_leftovers
from mora.system.machine import cores, need, versions
from mora.system.messages import listed, printable
from mora.training.folder import is_foreign
from mora.training.setup import make_accelerator, open_splits, rescored

STATE, PLOT, RUNS, PREFIXES = "sweep.json", "plot.png", "runs", "prefixes"
FORMAT = 1


class Sweeper:
    """One sweep under way; the arguments are those of `mora.Sweep.run`.

    Building it checks everything that would be wrong with every cell, before anything is written.
    """

    def __init__(
        self,
        plan: Plan,
        jobs: int = 1,
        backbone: Backbone | None = None,
        datasets: Mapping[str, Dataset] | None = None,
        console: Any = None,
    ) -> None:
        check_whole("jobs", jobs, 1)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("jobs: got a launcher of several processes, expected none: --jobs N runs N cells at once")
        for package in ("accelerate", "rich", "matplotlib", "torchmetrics"):
            need(package, "a sweep")
        from rich.console import Console

        self.folder, self.jobs, self.console = plan.folder, jobs, console or Console()
        shared = plan.base.cache_folder is None and plan.base.cache in ("auto", "disk")
        self.prefixes = self.folder / PREFIXES if shared else None
        self.stored = self.read(plan)
        base = replace(plan.base, cache_folder=str(self.prefixes)) if shared else plan.base
        self.plan = replace(plan, base=base)
        self.search = search_of(self.plan)
        self.backbone, self.datasets = backbone, datasets
        self.cpu = make_accelerator(base).device.type == "cpu"
        self.seen = self.open()
        self.metric, self.versions = self.seen["train"].metric, versions()
        self.rows: dict[tuple[int, int], Row] = {}
        self.seconds: dict[str, float] = {}
        self.test: dict[int, dict[str, float]] | None = None

    def read(self, plan: Plan) -> dict[str, Any] | None:
        """What an earlier call wrote; ValueError for a folder of another plan, or of something else."""
        folder = self.folder
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"out: got {folder}, which is a file, expected a folder")
        if (folder / STATE).is_file():
            stored = read_json(folder / STATE)
            if stored.get("format") != FORMAT:
                raise ValueError(f"{folder / STATE}: got format {stored.get('format')!r}, expected {FORMAT}")
            check_same_plan(stored.get("plan"), plan.to_dict(), folder)
            return stored
        if folder.is_dir() and (others := [e.name for e in folder.iterdir() if is_foreign(e.name)]):
            raise ValueError(
                f"out: got {folder}, which is not empty ({listed(sorted(others))}) and holds no sweep, expected a new "
                "folder"
            )
        return None

    def open(self) -> dict[str, Dataset]:
        """Training and validation split: what is wrong with the data is not found in every cell anew."""
        if self.datasets is not None:
            return rescored(self.plan.base, {split: self.datasets[split] for split in SEEN})
        base = self.plan.base
        own = load_backbone(base.backbone, base.pretrained) if self.backbone is None else self.backbone
        return open_splits(base, min(own.image_size), SEEN)

    def run(self, test: bool = True) -> Outcome:
        """Everything that happens while the folder is held; with `test`, the test of the winner too."""
        remove_leftovers(self.folder)
        if self.stored is None:
            self.write()
        self.say(self.plan.describe())
        try:
            self.search_all()
        except KeyboardInterrupt as error:
            self.say(f"stopped after {len(self.rows):,} cells: the same command goes on")
            vars(error)["told"] = True  # the run that was stopped is quiet
            raise
        outcome = self.outcome()
        if outcome.winner is None:
            first = next(row for row in outcome.rows if row.error)
            raise ValueError(
                f"every setting failed, expected one at least that is done with all seeds; setting {first.setting} "
                f"({words(first.values)}), seed {first.seed}: {first.error}"
            )
        self.test = self.test_winner(outcome, test)
        self.write(drawn=True)
        if self.prefixes is not None:
            shutil.rmtree(self.prefixes, ignore_errors=True)
        outcome = self.outcome()
        self.show(outcome)
        return outcome

    def search_all(self) -> None:
        """Round after round, until the search asks for no more."""
        count = 0
        with self.bar() as told:
            while settings := self.search.ask():
                numbered = {count + place: values for place, values in enumerate(settings, 1)}
                count += len(settings)
                self.try_all(numbered, told)
                self.search.tell([self.told(number) for number in numbered])

    def try_all(self, settings: Mapping[int, dict[str, Any]], told: Callable[[Row], None]) -> None:
        """All seeds of some settings; with pruning seed by seed, so that one that is ended early ends its setting."""
        seeds = self.plan.seeds
        if not self.plan.prune:
            self.train([Cell(self.plan, *setting, seed) for setting in settings.items() for seed in seeds], told)
            return
        first = min(settings)
        for seed in seeds:
            earlier = self.earlier(seed, first)
            left = [setting for setting in settings.items() if self.all_done(setting[0])]
            self.train([Cell(self.plan, *setting, seed, earlier) for setting in left], told)

    def earlier(self, seed: int, before: int) -> tuple[tuple[float, ...], ...]:
        """Validation by epoch, with one seed, of the settings that are done of those asked for `before` this one."""
        done = [setting for setting in self.outcome().settings if setting.counts and setting.number < before]
        return tuple(tuple(row.curve) for setting in done for row in setting.rows if row.seed == seed)

    def train(self, cells: Sequence[Cell], told: Callable[[Row], None]) -> None:
        """Train those cells that are not over, several at once."""
        fingerprints = {split: dataset.fingerprint for split, dataset in self.seen.items()}
        left = []
        for cell in cells:
            check_cell(cell, fingerprints)
            if ended(cell.folder):
                self.note(cell)
                told(self.rows[cell.number, cell.seed])
            else:
                left.append(cell)
        if not left:
            return
        seen = None if "backbone" in self.plan.fields and self.datasets is None else self.seen
        threads = max(1, cores() // self.jobs) if self.cpu and self.jobs > 1 else None
        work = partial(train_cell, backbone=self.backbone, datasets=seen)
        for place, found in each(work, left, self.jobs, threads):
            cell = left[place]
            if isinstance(found, LostProcessError):
                end(cell.folder, FAILED, str(found))
            self.note(cell)
            self.write()
            told(self.rows[cell.number, cell.seed])

    def note(self, cell: Cell) -> None:
        """Remember what became of a cell that is over."""
        self.rows[cell.number, cell.seed] = row_of(cell, self.metric)
        if (seconds := seconds_of(cell)) is not None:
            self.seconds[str(cell.folder.relative_to(self.folder))] = seconds

    def all_done(self, number: int) -> bool:
        """Whether no run of a setting ended early or failed so far."""
        return all(row.state == DONE for (setting, _), row in self.rows.items() if setting == number)

    def told(self, number: int) -> Told:
        """What became of a setting, as the search wants to hear it."""
        setting = next(one for one in self.outcome().settings if one.number == number)
        value = sum(setting.scores) / len(setting.scores) if setting.counts else None
        return Told(value, [row.curve for row in setting.rows], setting.state == PRUNED)

    def test_winner(self, outcome: Outcome, test: bool) -> dict[int, dict[str, float]] | None:
        """Metrics of the winner's runs on the test split, by seed: of an earlier call where it was measured then.

        None without `test` where no earlier call has measured it, and where there is no test split.
        """
        winner = outcome.winner
        assert winner is not None
        before = (self.stored or {}).get("winner")
        if isinstance(before, dict) and before.get("setting") == winner.number and isinstance(before.get("test"), dict):
            return {int(seed): figures for seed, figures in before["test"].items()}
        found: dict[int, dict[str, float]] = {}
        for row in winner.rows if test else ():
            cell = Cell(self.plan, winner.number, winner.values, row.seed)
            figures = score_test(cell, self.backbone, self.datasets)
            if figures is None:
                return None
            found[row.seed] = figures
        return found or None

    def outcome(self) -> Outcome:
        """What is known so far."""
        order = {seed: place for place, seed in enumerate(self.plan.seeds)}
        rows = [self.rows[key] for key in sorted(self.rows, key=lambda key: (key[0], order[key[1]]))]
        train = self.seen["train"]
        data = {
            "source": self.plan.base.data,
            "name": train.name,
            "classes": list(train.classes),
            "rows": {split: len(thinned(whole, self.plan.base.limit)) for split, whole in self.seen.items()},
            "fingerprints": {split: dataset.fingerprint for split, dataset in self.seen.items()},
        }
        return Outcome(self.plan, self.metric, rows, data, self.test, dict(sorted(self.seconds.items())))

    def write(self, drawn: bool = False) -> None:
        """Write sweep.json, and the plot where all is over."""
        outcome = self.outcome()
        if drawn:
            write_bytes(self.folder / PLOT, plot.draw(outcome))
        content = {"format": FORMAT, "plan": self.plan.to_dict(), **outcome.to_dict(), "versions": self.versions}
        if not drawn and self.stored is not None:
            content["winner"] = self.stored.get("winner")  # what was tested is not forgotten by a call that is stopped
        write_json(self.folder / STATE, content)

    def say(self, text: str) -> None:
        """A line in the terminal."""
        self.console.print(printable(text), highlight=False, markup=False, soft_wrap=True)

    def show(self, outcome: Outcome) -> None:
        """The table, what it says, and where the files are."""
        made = table(outcome)
        self.say(made.title)
        print_table(self.console, made)
        if (more := len(outcome.settings) - SHOWN) > 0:
            self.say(f"and {more:,} more in {STATE}")
        for line in remarks(outcome):
            self.console.print(f"- {printable(line)}", highlight=False, markup=False)
        self.say(f"Written: {self.folder / STATE}, {self.folder / PLOT}; best run: {outcome.best_run}")

    @contextmanager
    def bar(self) -> Iterator[Callable[[Row], None]]:
        """A progress bar over the cells; the block is given what moves it."""
        from rich import progress

        columns = [
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=20),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("{task.fields[last]}"),
        ]
        count = self.plan.combinations if self.plan.trials is None else self.plan.trials
        with progress.Progress(*columns, console=self.console) as bar:
            task = bar.add_task("cells", total=count * len(self.plan.seeds), last="the first compute the frozen blocks")

            def told(row: Row) -> None:
                shown = f"validation {100 * row.validation[self.metric]:.1f} %" if row.validation else row.state
                last = f"setting {row.setting}, seed {row.seed}: {shown}"
                bar.update(task, advance=1, last=last)
                if not self.console.is_terminal:
                    self.say(last)

            yield told
