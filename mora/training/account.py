"""What a run tells of itself as it goes: lines for people, events for programs, values for the tracker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from mora.system.signals import Stopped
from mora.training.checkpoints import Progress
from mora.training.config import TrainConfig
from mora.training.describe import where
from mora.training.engine import Step
from mora.training.log import Log, clock
from mora.training.objective.objective import Scores
from mora.training.result import Result


class Account:
    """One run's voice.

    Args:
        config: of the run.
        accelerator: of this process, which knows the trackers.
        log: of the run.
        metric: what the data is scored by.
        steps: of the optimiser, in all.
    """

    def __init__(self, config: TrainConfig, accelerator: Any, log: Log, metric: str, steps: int) -> None:
        self.config, self.accelerator, self.log = config, accelerator, log
        self.metric, self.steps = metric, steps

    def start_trackers(self, resumed: int | None) -> None:
        """Begin to report to the trackers asked for; `resumed` is the step a run goes on from."""
        if self.config.tracker == "none":
            return
        tensorboard = self.config.tracker == "tensorboard"
        options = {"tensorboard": {"purge_step": resumed + 1}} if tensorboard and resumed is not None else {}
        self.accelerator.init_trackers("tensorboard" if tensorboard else "mora", init_kwargs=options)

    def track(self, values: dict[str, float], step: int) -> None:
        """Tell the tracker, where there is one."""
        if self.config.tracker != "none":
            self.accelerator.log(values, step=step)

    def resumed(self, progress: Progress) -> None:
        """Where a run goes on."""
        self.log.say(f"resumed at epoch {progress.epoch}, step {progress.step} of {self.steps}")

    def step(self, progress: Progress, step: Step, throughput: float) -> None:
        """A step that is counted already."""
        self.log.advance(f"epoch {progress.epoch}/{self.config.epochs}", progress.step, step.loss, throughput)
        if progress.step % self.config.log_every == 0 or progress.step == 1:
            values = {"loss": step.loss, "lr": step.rate, "grad_norm": step.grad_norm}
            self.log.event("step", step=progress.step, epoch=progress.epoch, **values)
            told = {f"train/{name}": value for name, value in values.items() if value is not None}
            self.track(told, progress.step)

    def epoch(self, progress: Progress, scores: Scores, better: bool, spent: float) -> None:
        """An epoch that is over: its mean loss and its validation."""
        loss, (figures, patterns) = progress.loss[0] / progress.loss[1], scores
        self.log.event(
            "epoch", epoch=progress.epoch, step=progress.step, loss=loss, validation=figures, patterns=patterns,
            seconds=spent,
        )  # fmt: skip
        told = {"train/epoch_loss": loss, **{f"validation/{key}": value for key, value in figures.items()}}
        told |= {
            f"validation/{self.metric}, {name}": own[self.metric]
            for name, own in patterns.items()
            if self.metric in own
        }
        self.track(told, progress.step)
        mark = " (best)" if better else ""
        self.log.say(
            f"epoch {progress.epoch}/{self.config.epochs}  loss {loss:.4f}  validation {self.metric} "
            f"{100 * figures[self.metric]:.2f} %{self.apart(patterns)}{mark}  {clock(spent)} spent, "
            f"{clock(self.log.left(progress.step))} left"
        )

    def apart(self, patterns: Mapping[str, Mapping[str, float]]) -> str:
        """The score of each presence pattern, in words; "" where all rows have the same."""
        name = self.metric
        shown = [f"{pattern} {100 * own[name]:.2f}" for pattern, own in patterns.items() if name in own]
        return f" ({', '.join(shown)})" if len(patterns) > 1 and shown else ""

    def stopped(self, stopped: Stopped, progress: Progress, written: int | None) -> None:
        """Where the run stopped, and how it goes on; `written` is the step of its last checkpoint."""
        self.log.stop()
        stopped.told = self.log.main
        with suppress(OSError):  # a disk that is full is no reason to hide what happened
            self.log.say(f"stopped by {stopped} {where(progress, self.steps, self.config.epochs, written)}")

    def finished(self, result: Result) -> None:
        """What the best epoch reached."""
        name, test = self.metric, result.test
        if test is not None:
            self.log.event("test", epoch=result.best_epoch, test=test, patterns=result.patterns["test"])
        apart = {split: self.apart(patterns) for split, patterns in result.patterns.items()}
        shown = f", test {100 * test[name]:.2f} %{apart['test']}" if test is not None else ""
        self.log.say(
            f"best epoch {result.best_epoch}: validation {name} {100 * result.validation[name]:.2f} %"
            f"{apart['validation']}{shown}; {clock(result.seconds)}; {result.folder}"
        )

    def diagnosed(self, words: Iterable[str]) -> None:
        """What the run is worth, in a few sentences."""
        for sentence in words:
            self.log.say(f"diagnosis: {sentence}")
        self.log.say(f"diagnosis: mora inspect {self.log.folder} shows every projection")
