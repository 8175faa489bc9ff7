"""What a checkpoint must be before anything of it is used: every tensor and every value, against the run itself."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mora.system.checks import is_whole
from mora.system.messages import shown
from mora.training.checkpoints import Progress, State, optimizer_state
from mora.training.finite import SKIPS_IN_A_ROW

if TYPE_CHECKING:
    from mora.training.engine import Engine

KEYS = {"run", "progress", "groups", "optimized", "schedule", "scaler", "random", "skips_in_a_row", "log"}


@dataclass(frozen=True)
class Course:
    """What the run is, as far as its checkpoints must agree.

    Attributes:
        run: SHA-256 of what defines it.
        epochs, passes, accumulation: passes over the data, forward passes of each process in one, and per step.
        metric: by which the best epoch is chosen.
        logs: names of the files a checkpoint remembers the sizes of.
    """

    run: str
    epochs: int
    passes: int
    accumulation: int
    metric: str
    logs: tuple[str, ...]

    @property
    def steps(self) -> int:
        """Optimiser steps per epoch."""
        return math.ceil(self.passes / self.accumulation)


def largest_checkpoint(engine: Engine) -> int:
    """Bytes that a checkpoint may have: what is trained, its best and two moments; names, generators and values."""
    trained = engine.trained.items()
    return sum(5 * p.numel() * p.element_size() + 8 * len(name) + 4096 for name, p in trained) + (
        engine.processes + 4 << 20
    )


def check_state(state: State, engine: Engine, course: Course) -> None:
    """Raise ValueError that names the first value or tensor that a checkpoint of this run cannot have."""
    values = state.values
    same_names("state", values, KEYS)
    if values["run"] != course.run and not (state.earlier and values["run"] is None):
        raise ValueError("run: got a checkpoint of another run, expected one of this run")
    check_progress(values["progress"], course)
    progress = state.progress
    same_names("log", values["log"], set(course.logs))
    for name in course.logs:
        whole(f"log.{name}", values["log"][name], 0, 1 << 50)
    whole("skips_in_a_row", values["skips_in_a_row"], 0, SKIPS_IN_A_ROW)
    check_groups(values["groups"], engine)
    check_schedule(values["schedule"], values["groups"], progress.step, engine)
    check_scaler(values["scaler"], engine)
    check_generators(state, engine)
    check_parameters(state, engine, progress)


def check_progress(values: object, course: Course) -> None:
    """Where the run was: the counts fit each other and the recipe."""
    names = {one.name for one in fields(Progress)}
    same_names("progress", values, names)
    assert isinstance(values, dict)
    epoch = whole("progress.epoch", values["epoch"], 1, course.epochs + 1)
    done = whole("progress.done", values["done"], 0, course.passes if epoch <= course.epochs else 0)
    if done % course.accumulation and done != course.passes:
        raise ValueError(f"progress.done: got {done}, expected whole steps of {course.accumulation} forward passes")
    expected = (epoch - 1) * course.steps + math.ceil(done / course.accumulation)
    if whole("progress.step", values["step"], 0, expected) != expected:
        raise ValueError(f"progress.step: got {values['step']}, expected {expected} at epoch {epoch}, pass {done}")
    whole("progress.skipped", values["skipped"], 0, expected)
    finite("progress.seconds", values["seconds"], 0)
    loss = values["loss"]
    if not isinstance(loss, list) or len(loss) != 2:
        raise ValueError(f"progress.loss: got {shown(loss)}, expected a sum and a count")
    finite("progress.loss", loss[0])
    if (finite("progress.loss", loss[1], 0) > 0) != (done > 0):
        raise ValueError(f"progress.loss: got {loss[1]} rows after {done} forward passes, expected them to agree")
    best = values["best"]
    if (best is None) != (epoch == 1):
        raise ValueError(f"progress.best: got {shown(best)} in epoch {epoch}, expected one from the second epoch on")
    if best is not None:
        own = {"patterns"} & {*best} if isinstance(best, dict) else set()  # earlier versions wrote none
        same_names("progress.best", best, {"epoch", "validation", *own})
        whole("progress.best.epoch", best["epoch"], 1, epoch - 1)
        if not isinstance(best["validation"], dict) or course.metric not in best["validation"]:
            raise ValueError(f"progress.best.validation: got {shown(best['validation'])}, expected {course.metric}")
        for name, value in best["validation"].items():
            finite(f"progress.best.validation.{name}", value)
        for name, figures in mapping("progress.best.patterns", best.get("patterns", {})).items():
            for one, value in mapping(f"progress.best.patterns.{name}", figures).items():
                finite(f"progress.best.patterns.{name}.{one}", value)


def check_groups(groups: object, engine: Engine) -> None:
    """Parameter groups of the optimiser: those of now but for the learning rate."""
    _, now = optimizer_state(engine.optimizer.optimizer)
    if not isinstance(groups, list) or len(groups) != len(now):
        raise ValueError(f"groups: got {type(groups).__name__}, expected a list of {len(now)} parameter groups")
    for place, (group, expected) in enumerate(zip(groups, now, strict=True)):
        if not isinstance(group, dict) or not {"lr", "initial_lr", "params", "betas"} <= set(group) <= set(expected):
            raise ValueError(f"groups.{place}: got {shown(group)}, expected {', '.join(map(repr, expected))}")
        for name, value in group.items():
            wanted = list(expected[name]) if isinstance(expected[name], tuple) else expected[name]
            if name == "lr":
                finite(f"groups.{place}.lr", value, 0)
            elif value != wanted or isinstance(value, bool) != isinstance(wanted, bool):
                raise ValueError(f"groups.{place}.{name}: got {shown(value)}, expected {wanted!r}")


def check_schedule(values: object, groups: list[dict[str, Any]], step: int, engine: Engine) -> None:
    """The schedule stands at `step`, and the learning rates are those it gives there."""
    now = engine.schedule.state_dict()
    same_names("schedule", values, set(now))
    assert isinstance(values, dict)
    rates = [
        base * rate(step)
        for base, rate in zip(now["base_lrs"], engine.schedule.lr_lambdas, strict=True)  # type: ignore[attr-defined]
    ]
    expected = {**now, "last_epoch": step, "_step_count": step + 1, "_last_lr": rates}
    for name, wanted in expected.items():
        if values[name] != wanted and not (name.endswith("_lr") and alike(values[name], wanted)):
            raise ValueError(f"schedule.{name}: got {shown(values[name])}, expected {wanted!r} at step {step}")
    if not alike([group["lr"] for group in groups], rates):
        raise ValueError(f"groups: got learning rates {[g['lr'] for g in groups]}, expected {rates} at step {step}")


def alike(found: object, rates: list[float]) -> bool:
    """Whether learning rates are these, but for what another machine's cosine rounds otherwise."""
    return (
        isinstance(found, list)
        and len(found) == len(rates)
        and all(isinstance(a, float) and math.isclose(a, b, rel_tol=1e-9) for a, b in zip(found, rates, strict=True))
    )


def check_scaler(values: object, engine: Engine) -> None:
    """The gradient scaler, where there is one now."""
    scaler = engine.accelerator.scaler
    if scaler is None or not isinstance(values, dict):
        if not (scaler is None and values is None):
            raise ValueError(f"scaler: got {shown(values)}, expected {'none' if scaler is None else 'its state'}")
        return
    same_names("scaler", values, set(scaler.state_dict()))
    for name, value in values.items():
        finite(f"scaler.{name}", value, 0)
    if values.get("scale") == 0:
        raise ValueError("scaler.scale: got 0, expected a number above 0")


def check_generators(state: State, engine: Engine) -> None:
    """Random generators of every process: tried on generators of their own."""
    values = state.values["random"]
    if not isinstance(values, list) or len(values) != engine.processes:
        raise ValueError(f"random: got {type(values).__name__}, expected a list of {engine.processes} generators")
    for rank, given in enumerate(values):
        same_names(f"random.{rank}", given, {"python", "numpy"})
        tensors = state.part(f"random.{rank}")
        if set(tensors) - {"cuda"} != {"torch", "numpy"} or any(tensor.dim() != 1 for tensor in tensors.values()):
            raise ValueError(f"random.{rank}: got tensors {sorted(tensors)}, expected 'torch' and 'numpy'")
        try:
            torch.Generator().set_state(tensors["torch"])
            keys = tensors["numpy"]
            if keys.dtype != torch.int64 or bool(((keys < 0) | (keys >= 1 << 32)).any()):
                raise ValueError("numpy: expected 32-bit numbers")
            kind, *rest = given["numpy"]
            np.random.RandomState().set_state((kind, keys.numpy().astype(np.uint32), *rest))
            version, words, gauss = given["python"]
            random.Random().setstate((version, tuple(words), gauss))
        except (ValueError, TypeError, RuntimeError, OverflowError, IndexError) as error:
            raise ValueError(f"random.{rank}: got no state of a generator ({error}), expected one") from error


def check_parameters(state: State, engine: Engine, progress: Progress) -> None:
    """What is trained, its best so far and the optimiser's slots: names, shapes, dtypes, finite."""
    expected: dict[str, Tensor] = {f"model.{name}": parameter for name, parameter in engine.trained.items()}
    if progress.best is not None:
        expected |= {f"best.{name}": parameter for name, parameter in engine.trained.items()}
    parameters = [parameter for group in engine.optimizer.param_groups for parameter in group["params"]]
    slots = state.values["optimized"]
    taken = progress.step - progress.skipped
    numbers = range(len(parameters))
    if not isinstance(slots, list) or any(not is_whole(one) or one not in numbers for one in slots):
        raise ValueError(f"optimized: got {shown(slots)}, expected numbers of the {len(parameters)} trained parameters")
    if bool(slots) != (taken > 0) or len(set(slots)) != len(slots):
        raise ValueError(f"optimized: got {len(slots)} parameters after {taken} steps, expected them to agree")
    for number in slots:
        expected |= {f"optimizer.{number}.{name}": parameters[number] for name in ("exp_avg", "exp_avg_sq")}
        expected[f"optimizer.{number}.step"] = torch.zeros(())
        expected[f"optimizer.{number}.step"] = torch.zeros(())
    found = {name: tensor for name, tensor in state.tensors.items() if not name.startswith("random.")}
    same_names("tensors", found, set(expected))
    for name, wanted in expected.items():
        check_tensor(name, found[name], wanted)
        if name.endswith(".exp_avg_sq") and bool((found[name] < 0).any()):
            raise ValueError(f"{name}: got negative elements, expected squares")
        if name.startswith("optimizer.") and name.endswith(".step") and not 1 <= float(found[name]) <= taken:
            raise ValueError(f"{name}: got {float(found[name])}, expected 1 to {taken}")


def check_tensor(name: str, tensor: Tensor, wanted: Tensor) -> None:
    """ValueError unless shape and dtype are those wanted and every element is finite."""
    got, expected = (f"{t.dtype} {tuple(t.shape)}" for t in (tensor, wanted))
    if got != expected:
        raise ValueError(f"{name}: got {got}, expected {expected}")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name}: got NaN or infinite elements, expected finite ones")


def mapping(where: str, value: object) -> Mapping[str, Any]:
    """The value; ValueError unless it is a mapping."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: got {shown(value)}, expected an object")
    return value


def same_names(where: str, values: object, names: set[str]) -> None:
    """ValueError unless `values` is a mapping of exactly these names."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: got {type(values).__name__}, expected an object of {', '.join(sorted(names))}")
    if missing := sorted(names - set(values)):
        raise ValueError(f"{where}: got no {missing[0]!r}, expected {', '.join(sorted(names)[:10])}")
    if extra := sorted(set(values) - names):
        raise ValueError(f"{where}: got {shown(extra[0])}, expected only {', '.join(sorted(names)[:10])}")


def whole(name: str, value: object, low: int, high: int) -> int:
    """The value; ValueError unless it is an int from `low` to `high`."""
    if not is_whole(value) or not low <= value <= high:  # type: ignore[operator]
        raise ValueError(f"{name}: got {shown(value)}, expected a whole number from {low} to {high}")
    return value  # type: ignore[return-value]


def finite(name: str, value: object, low: float = -math.inf) -> float:
    """The value; ValueError unless it is a finite number of at least `low`."""
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    if not -sys.float_info.max <= number <= sys.float_info.max or number < low:
        least = f" of at least {low:g}" if low > -math.inf else ""
        raise ValueError(f"{name}: got {str(value)[:40]!r}, expected a finite number{least}")
    return number
