"""Which settings are tried: all of a grid, some at random, or those that Optuna suggests after what it has seen."""

from __future__ import annotations

import random
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

from mora.sweeping.plan import Plan, settings_key
from mora.sweeping.space import Range
from mora.system.machine import need

ROUND = 4  # settings that "tpe" suggests at a time: as many can run at once, and what it finds depends on no `jobs`
DRAWS = 100  # per trial, until a setting comes that was not there yet
STARTUP = 5  # settings that are finished before any is pruned


class Told(NamedTuple):
    """What became of a setting.

    Attributes:
        value: mean of the best validation over the seeds; None unless all are done.
        curves: validation by epoch, a list per seed that was tried.
        pruned: whether it was ended early.
    """

    value: float | None
    curves: list[list[float]]
    pruned: bool


class Search(ABC):
    """Settings, round by round; with the same answers it always asks the same."""

    @abstractmethod
    def ask(self) -> list[dict[str, Any]]:
        """The settings of the next round, each by field; none when it is over."""

    def tell(self, told: Sequence[Told]) -> None:  # noqa: B027
        """What became of the settings of the round, in order."""


class Listed(Search):
    """Settings that are known beforehand, in one round."""

    def __init__(self, settings: list[dict[str, Any]]) -> None:
        self.settings = settings

    def ask(self) -> list[dict[str, Any]]:
        settings, self.settings = self.settings, []
        return settings


class Suggested(Search):
    """Optuna's tree-structured Parzen estimator (TPE).

    A setting that was suggested before is not tried again; Optuna is told what became of it.
    """

    def __init__(self, plan: Plan) -> None:
        assert plan.trials is not None
        optuna = need("optuna", "search: 'tpe'", extra="sweep")
        self.optuna, self.plan, self.left = optuna, plan, plan.trials
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():  # of constant_liar, which keeps the suggestions of one round apart
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=plan.search_seed, constant_liar=True)
        self.study = optuna.create_study(direction="maximize", sampler=sampler)
        self.space = {name: self.distribution(values) for name, values in plan.fields.items()}
        self.asked: list[tuple[Any, str]] = []
        self.known: dict[str, Told] = {}

    def distribution(self, values: tuple[Any, ...] | Range) -> Any:
        """What Optuna calls the values of one field; of a list it knows the places."""
        distributions = self.optuna.distributions
        if not isinstance(values, Range):
            return distributions.CategoricalDistribution(list(range(len(values))))
        if values.whole:
            return distributions.IntDistribution(int(values.low), int(values.high), log=values.log)
        return distributions.FloatDistribution(values.low, values.high, log=values.log)

    def ask(self) -> list[dict[str, Any]]:
        new: list[dict[str, Any]] = []
        while self.left and not new:
            self.asked = []
            for _ in range(min(ROUND, self.left)):
                trial = self.study.ask(self.space)
                values = {name: self.value(name, trial.params[name]) for name in self.space}
                key = settings_key(values)
                if key not in self.known and key not in [other for _, other in self.asked]:
                    new.append(values)
                self.asked.append((trial, key))
                self.left -= 1
            if not new:
                self.close()
        return new

    def value(self, name: str, found: Any) -> Any:
        """The value of a field that Optuna's parameter stands for."""
        values = self.plan.fields[name]
        return found if isinstance(values, Range) else values[found]

    def tell(self, told: Sequence[Told]) -> None:
        fresh = [key for key in dict.fromkeys(key for _, key in self.asked) if key not in self.known]
        self.known.update(zip(fresh, told, strict=True))
        self.close()

    def close(self) -> None:
        """Tell Optuna of every trial of the round, in the order in which it asked for them."""
        states = self.optuna.trial.TrialState
        for trial, key in self.asked:
            told = self.known[key]
            for step, value in enumerate(value for curve in told.curves for value in curve):
                trial.report(value, step)
            if told.value is not None:
                self.study.tell(trial, told.value)
            else:
                self.study.tell(trial, state=states.PRUNED if told.pruned else states.FAIL)
        self.asked = []


def search_of(plan: Plan) -> Search:
    """The search that a plan asks for; ImportError where Optuna is wanted and absent."""
    if plan.search == "tpe":
        return Suggested(plan)
    return Listed(grid(plan) if plan.search == "grid" else drawn(plan))


def grid(plan: Plan) -> list[dict[str, Any]]:
    """Every combination, the last field varying fastest."""
    values = [values for values in plan.fields.values() if not isinstance(values, Range)]
    return [dict(zip(plan.fields, found, strict=True)) for found in product(*values)]


def drawn(plan: Plan) -> list[dict[str, Any]]:
    """`trials` different settings at random; fewer where ranges have no more."""
    assert plan.trials is not None
    generator = random.Random(plan.search_seed)
    if not any(isinstance(values, Range) for values in plan.fields.values()):
        return generator.sample(grid(plan), plan.trials)
    found: dict[str, dict[str, Any]] = {}
    for _ in range(DRAWS * plan.trials):
        values = {
            name: one.draw(generator) if isinstance(one, Range) else generator.choice(one)
            for name, one in plan.fields.items()
        }
        found.setdefault(settings_key(values), values)
        if len(found) == plan.trials:
            break
    return list(found.values())


def falls_behind(curve: Sequence[float], earlier: Sequence[Sequence[float]]) -> bool:
    """Whether Optuna's `MedianPruner` ends a run of this validation by epoch, given those of earlier settings."""
    if not curve or len(earlier) < STARTUP:
        return False
    optuna = need("optuna", "prune", extra="sweep")
    pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=0)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    for other in earlier:
        study.add_trial(optuna.trial.create_trial(value=max(other), intermediate_values=dict(enumerate(other))))
    trial = study.ask()
    for epoch, value in enumerate(curve):
        trial.report(value, epoch)
    return bool(trial.should_prune())
