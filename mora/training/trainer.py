"""One run: epochs, the best one kept, checkpoints; killed anywhere, it goes on from its last checkpoint."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mora.classifier import MissingModalityClassifier
from mora.data.dataset import Dataset
from mora.diagnosis.run import last_words
from mora.methods.keeping import keeping
from mora.runs.backbone import Backbone, load_backbone
from mora.runs.methods import adapt
from mora.runs.run import BEST, CHECKPOINTS, save_best, save_start
from mora.savings import Savings
from mora.system.signals import Stop, Stopped
from mora.system.workers import check_workers, lost_workers
from mora.training import setup
from mora.training.account import Account
from mora.training.batches import epoch_order, shares
from mora.training.beginning import begin_head, name_classes
from mora.training.caching import keep_rows
from mora.training.checkpoints import Progress, State, pack, write_checkpoint
from mora.training.config import TrainConfig
from mora.training.describe import describe, introduction, run_digest
from mora.training.engine import Engine, Step
from mora.training.folder import RunFolder, check_folder, refuse_held
from mora.training.log import LOGS, Log
from mora.training.objective.objective import Scores
from mora.training.processes import anywhere, lost_processes, on_main
from mora.training.result import Result
from mora.training.trust import Course


class Trainer:
    """One run. Building it loads and checks everything; `fit` trains.

    Args:
        config: what to do.
        backbone: a CLIP of your own, instead of the one `config` names; it is adapted in place.
        datasets: splits of your own ("train", "validation", perhaps "test"), instead of `config.data`.
        console: a `rich` console to speak to.

    Raises ValueError for what does not fit model, data or machine, ImportError without the extra `train`.
    """

    def __init__(
        self,
        config: TrainConfig,
        backbone: Backbone | None = None,
        datasets: Mapping[str, Dataset] | None = None,
        console: Any = None,
    ) -> None:
        self.config, self.folder = config, Path(config.out)
        check_workers(config.workers)
        self.accelerator = setup.make_accelerator(config)
        self.log = Log(self.folder, self.accelerator.is_main_process, console)
        on_main(self.accelerator, lambda: refuse_held(self.folder, self.log.show))
        processes = self.accelerator.num_processes
        setup.seed_everything(config.seed)
        self.backbone = load_backbone(config.backbone, config.pretrained) if backbone is None else backbone
        with self.accelerator.main_process_first():
            datasets = setup.splits_for(config, min(self.backbone.image_size), datasets)
        self.task = datasets["train"]
        policy = setup.token_policy(config, self.task)
        self.splits = setup.prepare(config, self.backbone, datasets, policy)
        self.description = describe(config, self.backbone, self.splits, policy, processes)
        preparing = self.splits["train"].inputs.preparing
        self.model = MissingModalityClassifier(
            self.backbone.model, len(self.task.classes), None, None, Savings.parse(config.savings),
            preparing.missing, head=config.head_kind, missing_embedding=config.missing_kind,
        )  # fmt: skip
        name_classes(self.model, self.task, preparing.tokenize)
        adapters = adapt(self.model.model, config.method, config.mora, config.lora_scale, config.prompts)
        self.rows = len(self.splits["train"].dataset)
        passes = math.ceil(self.rows / (config.batch * processes))
        self.course = Course(
            run_digest(self.description), config.epochs, passes, config.accumulation, self.task.metric, LOGS
        )
        self.steps = config.epochs * self.course.steps
        self.account = Account(config, self.accelerator, self.log, self.task.metric, self.steps)
        self.engine = Engine(self.accelerator, config, self.model, adapters, self.splits, self.steps)
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        self.written: int | None = None  # step of the last checkpoint
        self.saved = self.started = time.perf_counter()

    def fit(self, resume: bool = False) -> Result:
        """Train, keep the best validation epoch, test it once.

        SIGINT, SIGTERM and SIGHUP write a checkpoint after the step at hand and end the run; a second one at once.

        Args:
            resume: go on from the last checkpoint of the run folder; from the beginning where there is none.

        Raises:
            ValueError: the folder holds a run and `resume` is False, or another run, or is written by one; NaN.
            OSError: the folder cannot be written, or a process that reads images was killed.
            KeyboardInterrupt: a signal asked to end; the message says where it stopped.
        """
        self.place = RunFolder(self.folder, resume, self.accelerator, self.log)
        with Stop() as self.stop, lost_processes(self.accelerator), lost_workers(), self.place, keeping(self.model):
            return self.run()

    def run(self) -> Result:
        """Everything that happens while the folder is held."""
        state = self.place.open(self.description, self.engine, self.course)
        if (done := Result.read(self.folder)) is not None:
            self.log.say(f"{self.folder}: finished already")
            return done
        # Dropout draws from here on, differently in every process, whatever was drawn since the trainer was built.
        setup.seed_everything(self.config.seed + 1 + self.accelerator.process_index)
        self.started = time.perf_counter()
        self.account.start_trackers(None if state is None else state.progress.step)
        if state is not None:
            self.restore(state)
        elif self.log.main:
            save_start(self.folder, self.model.clip, self.config.method)
        self.introduce(state)
        try:
            if self.engine.trained:
                self.fit_epochs(state is None)
            else:
                figures, patterns = self.evaluate("validation")
                self.progress.best = {"epoch": 0, "validation": figures, "patterns": patterns}
                self.save_best()
            result = self.finish()
        except KeyboardInterrupt as error:  # in a thread that no signal reaches it comes as it is
            stopped = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)
            self.account.stopped(stopped, self.progress, self.written)
            raise
        finally:
            self.log.stop()
        self.accelerator.end_training()
        return result

    def fit_epochs(self, new: bool) -> None:
        """The epochs that are left."""
        self.keep_rows()
        if new:
            with self.accelerator.autocast():
                begin_head(self.engine)
        self.log.start(self.steps, self.progress.step)
        self.stop.waiting = True
        while self.progress.epoch <= self.config.epochs:
            self.train_epoch()
            self.end_epoch()

    def introduce(self, state: State | None) -> None:
        """Say what is going to happen."""
        if state is not None:
            self.account.resumed(self.progress)
            return
        place, processes, steps = self.accelerator.device.type, self.accelerator.num_processes, self.course.steps
        trained = self.engine.trained
        for line in introduction(self.config, self.splits, trained, self.model.model, place, processes, steps):
            self.log.say(line)

    def keep_rows(self) -> None:
        """Take batches from rows past the frozen blocks, where they can be kept."""
        self.engine.train_mode()
        with self.accelerator.autocast():
            caches = keep_rows(
                self.config, self.model, self.splits, self.accelerator.num_processes, self.engine.workers(), self.log
            )  # fmt: skip
        self.engine.use(caches)

    def train_epoch(self) -> None:
        """The rest of the epoch in progress."""
        config, progress = self.config, self.progress
        order = epoch_order(self.rows, config.seed, progress.epoch)
        plan = shares(order, config.batch, self.accelerator.num_processes, self.accelerator.process_index)
        plan = plan[progress.done :]
        batches = self.engine.batches("train", [share.rows for share in plan])
        self.engine.begin_epoch()
        began, samples = time.perf_counter(), 0
        for begin in range(0, len(plan), config.accumulation):
            group = plan[begin : begin + config.accumulation]
            step = self.engine.step(group, batches, f"step {progress.step + 1} (epoch {progress.epoch})")
            progress.done += len(group)
            samples += step.rows
            self.report(step, samples / (time.perf_counter() - began))
            due, stopping = self.boundary() if begin + len(group) < len(plan) else (False, False)
            if due or stopping:
                self.checkpoint()
            if stopping:
                raise Stopped(self.stop.number or signal.SIGTERM)

    def report(self, step: Step, throughput: float) -> None:
        """Count a step and tell of it."""
        progress = self.progress
        progress.step += 1
        progress.skipped += step.skipped
        progress.loss = [progress.loss[0] + step.loss * step.rows, progress.loss[1] + step.rows]
        self.account.step(progress, step, throughput)

    def end_epoch(self) -> None:
        """Validate, keep the best, write a checkpoint."""
        progress, name = self.progress, self.task.metric
        figures, patterns = scores = self.evaluate("validation")
        better = progress.best is None or figures[name] > progress.best["validation"][name]
        if better:
            progress.best = {"epoch": progress.epoch, "validation": figures, "patterns": patterns}
            self.best = self.engine.copies()
            self.save_best()
        self.account.epoch(progress, scores, better, self.spent())
        progress.epoch, progress.done, progress.loss = progress.epoch + 1, 0, [0.0, 0.0]
        self.checkpoint()

    def spent(self) -> float:
        """Seconds of this run, earlier parts included."""
        return self.progress.seconds + time.perf_counter() - self.started

    def boundary(self) -> list[bool]:
        """Whether a checkpoint is due, by the main process's clock, and whether any process is to end."""
        due = time.perf_counter() - self.saved > 60 * self.config.checkpoint_minutes
        return anywhere(self.accelerator, due and self.log.main, self.stop.asked())

    def evaluate(self, split: str) -> Scores:
        """Metrics of a split; Stopped, with a checkpoint of the last step, when a signal comes meanwhile."""
        scores = self.engine.evaluate(split, self.stop.asked)
        if scores is None:
            if self.progress.epoch <= self.config.epochs:
                self.checkpoint()
            raise Stopped(self.stop.number or signal.SIGTERM)
        return scores

    def checkpoint(self) -> None:
        """Write everything that decides how the run goes on."""
        parts, values = self.engine.state()
        self.saved = time.perf_counter()
        if self.accelerator.is_main_process:
            self.place.check()
            progress = Progress(**{**vars(self.progress), "seconds": self.spent()})
            values |= {"log": self.log.sizes(), "run": self.course.run}
            state = pack(progress, {**parts, "best": self.best}, values)
            write_checkpoint(self.folder / CHECKPOINTS, state)
        self.written = self.progress.step

    def restore(self, state: State) -> None:
        """Be where the checkpoint was taken, files of the run folder included."""
        self.progress = state.progress
        self.written = self.progress.step
        self.best = {name: tensor.to(self.accelerator.device) for name, tensor in state.part("best").items()}
        if self.best:
            self.engine.put(self.best)
            self.save_best()
        self.log.cut(state.values["log"])
        self.engine.restore(state)

    def save_best(self) -> None:
        """Write the trained tensors as they are to best/."""
        assert self.progress.best is not None
        if self.accelerator.is_main_process:
            self.place.check()
            save_best(self.folder / BEST, self.model, self.config.method, self.config.mora, self.progress.best)

    def finish(self) -> Result:
        """Test the best epoch, where there is a test split, and write the result."""
        progress = self.progress
        assert progress.best is not None
        self.engine.put(self.best)
        test = self.evaluate("test") if "test" in self.splits else None
        count = sum(parameter.numel() for parameter in self.engine.trained.values())
        best = progress.best["epoch"], progress.best["validation"]
        patterns = {"validation": progress.best.get("patterns", {})} | ({} if test is None else {"test": test.patterns})
        figures = None if test is None else test.figures
        epochs = self.config.epochs if self.engine.trained else 0
        result = Result(self.folder, *best, figures, epochs, count, progress.skipped, self.spent(), patterns)
        self.account.finished(result)
        if self.accelerator.is_main_process:
            result.write()
            self.account.diagnosed(last_words(self.folder, self.description, result.best_epoch, self.model))
        return result


def train(data: str | os.PathLike[str], out: str | os.PathLike[str], resume: bool = False, **fields: Any) -> Result:
    """Adapt a CLIP to a data set in which images or texts are missing, and return what it reached.

    Args:
        data: "openmoji", a folder of a data set, or a CSV / JSONL / Parquet manifest.
        out: the run folder.
        resume: go on from the folder's last checkpoint.
        fields: of `mora.training.TrainConfig` (backbone, method, missing, epochs, batch, lr ...) and of `MoraConfig`
            (rank, alpha, targets ...), or `preset=`.

    Raises:
        ValueError: a field, the data or the folder is not as expected; the message names it.
        ImportError: a package of the extra `train` is absent.
    """
    config = TrainConfig.make(data=os.fspath(data), out=os.fspath(out), **fields)
    check_folder(Path(config.out), resume)
    return Trainer(config).fit(resume)
