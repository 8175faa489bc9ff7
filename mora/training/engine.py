"""What changes during training, and one step of it: model, optimiser, schedule, generators."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mora.classifier import MissingModalityClassifier
from mora.savings import Hidden
from mora.savings.cache import PrefixCache
from mora.training.batches import Share, loader
from mora.training.caching import CachedInputs
from mora.training.checkpoints import (
    State,
    optimizer_state,
    random_state,
    restore_optimizer,
    restore_random_state,
)
from mora.training.config import TrainConfig
from mora.training.finite import SKIPS_IN_A_ROW, NotFiniteError, explain, grad_norm
from mora.training.objective.make import make_objective
from mora.training.objective.objective import Scores
from mora.training.optimization import make_optimizer, make_schedule
from mora.training.setup import Split


class Step(NamedTuple):
    """One step of the optimiser: mean loss over its rows, gradient norm, learning rate, rows, whether it was left out.

    The norm is None where scaled gradients overflowed; the gradient scaler leaves such a step out.
    """

    loss: float
    grad_norm: float | None
    rate: float
    rows: int
    skipped: bool


class Engine:
    """The trainable state of one run, on this process's device.

    Args:
        accelerator: of this process.
        config: the recipe.
        model: the classifier, adapted.
        adapters: what is trained in its CLIP, by name.
        splits: the data.
        steps: of the optimiser, in the whole run.
    """

    def __init__(
        self,
        accelerator: Any,
        config: TrainConfig,
        model: MissingModalityClassifier,
        adapters: Mapping[str, nn.Parameter],
        splits: Mapping[str, Split],
        steps: int,
    ) -> None:
        self.accelerator, self.config, self.model, self.splits = accelerator, config, model, splits
        self.device, self.processes, self.rank = (
            accelerator.device,
            accelerator.num_processes,
            accelerator.process_index,
        )
        own = model.own_parameters()
        self.trained = {**adapters, **own}
        optimizer = make_optimizer(adapters.values(), own.values(), config)
        self.schedule = make_schedule(optimizer, steps, config.warmup)
        self.wrapped, self.optimizer = accelerator.prepare(model, optimizer)
        self.objective = make_objective(config, accelerator, splits, model)
        self.task = splits["train"].dataset
        self.skips_in_a_row = 0
        self.cached: dict[str, CachedInputs] = {}

    def use(self, caches: Mapping[str, PrefixCache]) -> None:
        """Take the batches of some splits from rows past the frozen blocks."""
        self.cached = {split: CachedInputs(cache, self.splits[split].inputs) for split, cache in caches.items()}

    def step(self, group: Sequence[Share], batches: Iterator[dict[str, Tensor]], where: str) -> Step:
        """One step: the mean loss over what counts in all forward passes in `group` and of all processes.

        Raises NotFiniteError, which names the tensor and `where`, before NaN or infinity reaches a parameter.
        """
        total = sum(self.objective.count(share) for share in group)
        loss = torch.zeros((), device=self.device)
        for position, share in enumerate(group):
            batch = self.to_device(next(batches))
            last = position == len(group) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                part = self.objective.loss(self.forward(self.wrapped, batch), batch, share, total)
                self.accelerator.backward(part)
            loss += part.detach()
        loss, norm = self.accelerator.reduce(loss, "mean"), grad_norm(self.trained.values())
        value, size = torch.stack([loss, norm.to(loss)]).tolist()
        scaler = self.accelerator.scaler
        if not math.isfinite(value) or (scaler is None and not math.isfinite(size)):
            raise self.not_finite(value, batch, where)
        rate = self.optimizer.param_groups[0]["lr"]
        unscaled = None if not math.isfinite(size) else size if scaler is None else size / scaler.get_scale()
        self.optimizer.step()
        with warnings.catch_warnings():  # torch takes a first step that the scaler left out for a wrong order of calls
            warnings.filterwarnings("ignore", "Detected call of .lr_scheduler.step")
            self.schedule.step()
        skipped = bool(self.accelerator.optimizer_step_was_skipped)
        self.skips_in_a_row = self.skips_in_a_row + 1 if skipped else 0
        if self.skips_in_a_row >= SKIPS_IN_A_ROW:
            raise self.not_finite(value, batch, where)
        self.optimizer.zero_grad()
        return Step(value, unscaled, rate, sum(share.total for share in group), skipped)

    def begin_epoch(self) -> None:
        """As `train_mode`; ValueError when frozen weights are no longer those of the rows that are kept."""
        if caches := [cached.cache for cached in self.cached.values() if cached.cache is not None]:
            caches[0].check(contents=True)
        self.train_mode()

    def train_mode(self) -> None:
        """Dropout on; the running statistics of frozen batch norms stay as they are."""
        self.wrapped.train()
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

    def forward(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits [B, C], or what else the head of the objective gives."""
        towers = self.model.towers
        present = {name: batch[f"{name}_present"] for name in towers}
        if all(f"{name}_rows" in batch for name in towers):
            rows = {m: Hidden(batch[f"{m}_rows"], batch.get(f"{m}_tokens"), filled=True) for m in towers}
            return model(inputs=rows, present=present)
        return model(inputs={name: batch[name] for name in towers}, present=present)

    def not_finite(self, loss: float, batch: Mapping[str, Tensor], where: str) -> NotFiniteError:
        """The error that names what is not finite."""
        ids = [self.task[index].id for index in batch["index"].tolist()]
        return explain(where, loss, self.trained, batch, ids)

    @torch.no_grad()
    def evaluate(self, split: str, stopping: Callable[[], bool]) -> Scores | None:
        """Metrics of the model as it is on a split; every process takes a part of the rows.

        None when `stopping`, asked before every batch, says that one of the processes is to end.
        """
        from accelerate.utils import gather_object

        own = list(range(self.rank, len(self.splits[split].dataset), self.processes))
        self.model.eval()
        found: list[Any] = []
        for batch in self.batches(
            split, [own[at : at + self.config.batch] for at in range(0, len(own), self.config.batch)]
        ):
            if stopping():
                found.append(None)
                break
            placed = self.to_device(batch)
            with self.accelerator.autocast():
                outputs = self.forward(self.model, placed)
            found.append((batch["index"], outputs.float().cpu(), batch["label"]))
        everything = gather_object(found)
        if any(part is None for part in everything):
            return None
        index, outputs, labels = (torch.cat(column) for column in zip(*everything, strict=True))
        order = index.argsort()
        return self.objective.scores(split, outputs[order], labels[order])

    def batches(self, split: str, rows: list[list[int]]) -> Iterator[dict[str, Tensor]]:
        """Batches of a split, decoded by worker processes where there are any."""
        cached = self.cached.get(split)
        in_memory = cached is not None and cached.in_memory
        inputs = self.splits[split].inputs if cached is None else cached
        return loader(inputs, rows, 0 if in_memory else self.workers(), self.device.type == "cuda")

    def workers(self) -> int:
        """Processes that read images."""
        if self.config.workers is not None:
            return self.config.workers
        return min(8, os.cpu_count() or 1) if self.device.type == "cuda" else 0

    def to_device(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch where the model is."""
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def state(self) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
        """(tensors by part, JSON values) of everything here that decides how training goes on."""
        from accelerate.utils import gather_object

        generators = gather_object([random_state(self.device)])
        slots, groups = optimizer_state(self.optimizer.optimizer)
        scaler = self.accelerator.scaler
        parts: dict[str, Mapping[str, Tensor]] = {"model": self.trained, "optimizer": slots}
        parts |= {f"random.{rank}": tensors for rank, (tensors, _) in enumerate(generators)}
        return parts, {
            "groups": groups,
            "optimized": sorted({int(name.partition(".")[0]) for name in slots}),
            "schedule": self.schedule.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "random": [values for _, values in generators],
            "skips_in_a_row": self.skips_in_a_row,
        }

    def restore(self, state: State) -> None:
        """Put back what `state` took."""
        values = state.values
        self.put(state.part("model"))
        restore_optimizer(self.optimizer.optimizer, state.part("optimizer"), values["groups"])
        self.schedule.load_state_dict(values["schedule"])
        if self.accelerator.scaler is not None and values["scaler"]:
            self.accelerator.scaler.load_state_dict(values["scaler"])
        self.skips_in_a_row = values["skips_in_a_row"]
        restore_random_state(self.device, state.part(f"random.{self.rank}"), values["random"][self.rank])

    @torch.no_grad()
    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors into what is trained."""
        for name, parameter in self.trained.items():
            parameter.copy_(tensors[name])

    def copies(self) -> dict[str, Tensor]:
        """Copies of what is trained, by name."""
        return {name: parameter.detach().clone() for name, parameter in self.trained.items()}
