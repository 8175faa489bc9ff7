"""One cell of a sweep: a run of `mora.training` in a folder of its own, which says how it ended."""

from __future__ import annotations

import copy
import gc
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mora.data.dataset import SPLITS, Dataset
from mora.runs.backbone import Backbone, load_backbone
from mora.runs.methods import trained_tensors
from mora.runs.run import CONFIG, METRICS, load_run, read_config
from mora.sweeping.plan import Plan
from mora.sweeping.search import falls_behind
from mora.system.files import read_json, read_text, write_json
from mora.system.messages import one_line, shown
from mora.training.config import FREE_ON_RESUME, TrainConfig
from mora.training.describe import flat
from mora.training.folder import refuse_held
from mora.training.result import Result
from mora.training.setup import open_splits
from mora.training.trainer import Trainer

SEEN = ("train", "validation")
ENDED = "ended.json"  # of a cell that has no result.json: how it ended
DONE, PRUNED, FAILED = "done", "pruned", "failed"


class Cell(NamedTuple):
    """One run to do: a setting with one seed.

    Attributes:
        plan: of the sweep.
        number: of the setting, from 1.
        values: of the setting, by field.
        seed: of the run.
        earlier: validation by epoch of earlier settings with this seed: a run that falls behind them is ended.
    """

    plan: Plan
    number: int
    values: dict[str, Any]
    seed: int
    earlier: tuple[tuple[float, ...], ...] = ()

    @property
    def config(self) -> TrainConfig:
        """Of the run; ValueError where values do not go together."""
        return self.plan.config(self.values, self.seed, self.number)

    @property
    def folder(self) -> Path:
        """Of the run."""
        return self.plan.cell_folder(self.number, self.seed)


@dataclass(frozen=True)
class Row:
    """What became of a cell; nothing in it depends on when or how fast it ran.

    Attributes:
        setting: number of the setting.
        seed: of the run.
        values: of the setting, by field.
        state: "done", "pruned" or "failed".
        curve: validation by epoch, as far as it came.
        best_epoch, validation, parameters: as in `mora.training.Result`; None unless done.
        error: why it failed, or when it was ended.
    """

    setting: int
    seed: int
    values: dict[str, Any]
    state: str
    curve: list[float]
    best_epoch: int | None = None
    validation: dict[str, float] | None = None
    parameters: int | None = None
    error: str | None = None


class Behind(Exception):  # noqa: N818
    """A run is ended because earlier settings were better at this epoch."""


class CellTrainer(Trainer):
    """A trainer that gives up where earlier settings were better."""

    earlier: tuple[tuple[float, ...], ...] = ()

    def train_epoch(self) -> None:
        """As every epoch, unless the ones before were too bad; asked here, a run that is resumed ends as well."""
        done = curve(self.folder, self.task.metric)
        if falls_behind(done, self.earlier):
            raise Behind(f"validation below the median of the earlier settings after epoch {len(done)}")
        super().train_epoch()


def curve(folder: Path, metric: str) -> list[float]:
    """Validation by epoch of a run, as far as it came."""
    path = folder / METRICS
    lines = [json.loads(line) for line in read_text(path).splitlines()] if path.is_file() else []
    return [line["validation"][metric] for line in lines if line["event"] == "epoch"]


def train_cell(cell: Cell, backbone: Backbone | None, datasets: Mapping[str, Dataset] | None) -> None:
    """Train, or go on, until the folder says how it ended.

    What is wrong with this cell alone (values that do not go together, NaN, no memory) is written to its folder; what
    would be wrong with every other one, absent packages and a disk that is full, is raised.
    """
    folder = cell.folder
    if ended(folder):
        return
    refuse_held(folder, lambda line: None)
    try:
        make_trainer(cell, backbone, datasets, SEEN).fit(resume=True)
    except Behind as behind:
        end(folder, PRUNED, str(behind))
    except ChildProcessError as error:  # a process that reads samples: nothing else is wrong with the machine
        end(folder, FAILED, in_words(error))
    except (ImportError, OSError):
        raise
    except Exception as error:
        end(folder, FAILED, in_words(error))
    if torch.cuda.is_available():  # what a cell leaves behind is not there for the next one
        gc.collect()
        torch.cuda.empty_cache()


def make_trainer(
    cell: Cell, backbone: Backbone | None, datasets: Mapping[str, Dataset] | None, splits: Sequence[str]
) -> CellTrainer:
    """The trainer of a cell, quiet, over some splits: no other one is opened."""
    from rich.console import Console

    config = cell.config
    own = load_backbone(config.backbone, config.pretrained) if backbone is None else copy.deepcopy(backbone)
    if datasets is None:
        datasets = open_splits(config, min(own.image_size), splits)
    trainer = CellTrainer(config, own, {s: datasets[s] for s in splits if s in datasets}, Console(quiet=True))
    trainer.earlier = cell.earlier
    return trainer


def score_test(
    cell: Cell, backbone: Backbone | None, datasets: Mapping[str, Dataset] | None
) -> dict[str, float] | None:
    """Metrics of the best epoch of a finished cell on the test split, as `mora train` measures them; None without."""
    trainer = make_trainer(cell, backbone, datasets, SPLITS)
    if "test" not in trainer.splits:
        return None
    untouched = None if backbone is None else copy.deepcopy(backbone)
    run = load_run(cell.folder, trainer.accelerator.device, untouched)
    tensors = trained_tensors(run.model.model, run.method)
    trainer.engine.put({**tensors, **{f"head.{name}": p.detach() for name, p in run.model.head.named_parameters()}})
    return trainer.engine.evaluate("test", lambda: False)


def ended(folder: Path) -> bool:
    """Whether a cell is over."""
    return Result.read(folder) is not None or (folder / ENDED).is_file()


def end(folder: Path, state: str, error: str) -> None:
    """Write how a cell ended that has no result."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / ENDED, {"state": state, "error": error})


def in_words(error: BaseException) -> str:
    """An error on one line, with its kind where that says more."""
    text = one_line(str(error))
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text or 'no message'}"


def row_of(cell: Cell, metric: str) -> Row:
    """What became of a cell that is over, from its folder."""
    folder = cell.folder
    about = cell.number, cell.seed, cell.values
    done = curve(folder, metric)
    if (result := Result.read(folder)) is not None:
        return Row(*about, DONE, done, result.best_epoch, result.validation, result.parameters)
    found = read_json(folder / ENDED)
    state, error = found.get("state"), found.get("error")
    if state not in (PRUNED, FAILED) or not isinstance(error, str):
        raise ValueError(f"{folder / ENDED}: got {shown(found)}, expected 'state' ('pruned' or 'failed') and 'error'")
    return Row(*about, state, done, error=error)


def seconds_of(cell: Cell) -> float | None:
    """How long a finished cell took."""
    result = Result.read(cell.folder)
    return None if result is None else result.seconds


def check_cell(cell: Cell, fingerprints: Mapping[str, str]) -> None:
    """Raise ValueError that names the first thing in which a cell's folder is another run, or of other data."""
    folder = cell.folder
    if not (folder / CONFIG).is_file():
        return
    stored, now = read_config(folder), json.loads(json.dumps(cell.config.to_dict()))
    old = dict(flat("train", stored.get("train"))) | dict(flat("data.fingerprints", stored["data"].get("fingerprints")))
    new = dict(flat("train", now)) | {f"data.fingerprints.{name}": value for name, value in fingerprints.items()}
    for name in sorted({*old, *new} - {f"train.{name}" for name in FREE_ON_RESUME}):
        if old.get(name) != new.get(name):
            raise ValueError(
                f"{name.removeprefix('train.')}: {folder} was started with {shown(old.get(name))}, this call has "
                f"{shown(new.get(name))}: expected the same to go on; use another --out for another sweep"
            )
