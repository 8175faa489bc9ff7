"""The folder of a run while it trains: held by this run alone, checked, cleared of what a kill left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mora.runs.run import CHECKPOINTS, CONFIG, LOG, METRICS, read_config, write_config
from mora.system.folders import LEFTOVER, remove_leftovers
from mora.system.lock import LOCK, FolderLock
from mora.system.messages import listed
from mora.training.checkpoints import State, read_checkpoint, set_aside
from mora.training.describe import check_same_run, other_versions
from mora.training.log import Log
from mora.training.processes import everyones, on_main
from mora.training.trust import Course, check_state, largest_checkpoint

if TYPE_CHECKING:
    from mora.training.engine import Engine


class RunFolder:
    """The folder of one run, as a context manager: only one run at a time is inside.

    All processes of a run enter together; the main one holds the lock, writes, and its error is everybody's.

    Args:
        path: the folder.
        resume: whether it may hold a run.
        accelerator: of this process.
        log: of the run.

    Raises ValueError that names the holder when another run has it, and for a folder that `check_folder` refuses.
    """

    def __init__(self, path: Path, resume: bool, accelerator: Any, log: Log) -> None:
        self.path, self.resume, self.accelerator, self.log = path, resume, accelerator, log
        self.lock: FolderLock | None = None
        self.stack = ExitStack()

    def __enter__(self) -> RunFolder:
        on_main(self.accelerator, self.take)
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.close()

    def take(self) -> None:
        """Lock the folder, made if it is not there."""
        check_folder(self.path, self.resume)
        self.lock = self.stack.enter_context(FolderLock(self.path, say=self.log.show))

    def check(self) -> None:
        """Raise ValueError when the lock was lost; before anything is written that another run might write too."""
        if self.lock is not None:
            self.lock.check()

    def open(self, description: Mapping[str, Any], engine: Engine, course: Course) -> State | None:
        """Write a new run's configuration, or check that the folder is this run's; the checkpoint to go on from.

        Args:
            description: the content of config.json.
            engine, course: what a checkpoint must fit; where one does not, the one before is tried.
        """
        on_main(self.accelerator, lambda: self.prepare(description))
        state, refused = read_checkpoint(
            self.path / CHECKPOINTS, lambda state: check_state(state, engine, course), largest_checkpoint(engine)
        )
        places = everyones(None if state is None else [state.progress.step, state.progress.epoch])
        if any(place != places[0] for place in places):
            raise ValueError(
                f"{self.path}: got other checkpoints in other processes ({places}), expected one file system"
            )
        for path, reason in refused.items():
            self.log.say(f"warning: checkpoint {path.name} is passed over and renamed: {reason}")
        on_main(self.accelerator, lambda: set_aside(refused))
        if state is not None and state.earlier:
            self.log.say(
                "warning: the checkpoint was saved by an earlier version without a digest: values checked only"
            )
        if state is None:
            self.log.cut({METRICS: 0, LOG: 0})
        elif warning := other_versions(read_config(self.path)):
            self.log.say(warning)
        return state

    def prepare(self, description: Mapping[str, Any]) -> None:
        """On the main process: check the folder, clear it, and write config.json where there is none."""
        check_folder(self.path, self.resume)
        self.log.check()
        stored = (self.path / CONFIG).is_file()
        if stored:
            check_same_run(read_config(self.path), description, str(self.path))
        for place in (self.path, self.path / CHECKPOINTS):
            if place.is_dir() and not (place.is_symlink() and place != self.path):
                remove_leftovers(place)
        if not stored:
            write_config(self.path, description)


def refuse_held(folder: Path, say: Callable[[str], None]) -> None:
    """Raise ValueError when a run is inside: before models and data are loaded; `say` is told of a wait."""
    if folder.is_dir():
        with FolderLock(folder, say=say):
            pass


def check_folder(folder: Path, resume: bool) -> None:
    """Raise ValueError for a run folder that is in use and not to be resumed, holds something else, or is no folder."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out: got {folder}, which is a file, expected a folder")
    if (folder / CONFIG).is_file():
        if not resume:
            raise ValueError(f"out: got {folder}, which holds a run, expected a new folder, or --resume to go on")
    elif folder.is_dir() and (others := [e.name for e in folder.iterdir() if is_foreign(e.name)]):
        raise ValueError(
            f"out: got {folder}, which is not empty ({listed(sorted(others))}) and holds no run, expected a new folder"
        )


def is_foreign(name: str) -> bool:
    """Whether an entry of a folder without config.json tells that it is no run's."""
    return name != LOCK and not LEFTOVER.fullmatch(name)
