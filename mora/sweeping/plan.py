"""The plan of a sweep: what is searched, how, and with which seeds; a folder has one plan."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path
from typing import Any, TypeVar

from mora.sweeping.space import Range, as_json, check_field, config_of, word
from mora.system.checks import is_whole, one_of
from mora.system.messages import shown
from mora.training.config import FREE_ON_RESUME, LARGEST_SEED, TrainConfig
from mora.training.describe import flat

P = TypeVar("P", bound="Plan")
SEARCHES = ("grid", "random", "tpe")
SEEDS = (0, 1, 2)
ATTEMPTS = 1000  # combinations that are tried to find one that a value goes with
# What a sweep gives each cell.
GIVEN = {*FREE_ON_RESUME, "seed"}


@dataclass(frozen=True)
class Plan:
    """What a sweep is going to do; a wrong value raises a ValueError that names the argument.

    Attributes:
        base: what all cells share; its `out` is the folder of the sweep.
        fields: what is searched: a tuple of values, or a `Range`, by the name of a field of `TrainConfig` or
            `MoraConfig`.
        seeds: every setting is tried with each of them; the mean over them counts.
        search: "grid", every combination; "random", `trials` of them; "tpe", `trials` that Optuna suggests after what
            it has seen.
        trials: how many settings "random" and "tpe" try.
        search_seed: of what "random" and "tpe" draw.
        prune: with "tpe": a cell ends once its best validation so far is below the median of the earlier settings' at
            the same epoch with the same seed (Optuna's `MedianPruner`), and its setting with it.
    """

    base: TrainConfig
    fields: Mapping[str, tuple[Any, ...] | Range] = field(default_factory=dict)
    seeds: tuple[int, ...] = SEEDS
    search: str = "grid"
    trials: int | None = None
    search_seed: int = 0
    prune: bool = False

    def __post_init__(self) -> None:
        checked = {name: check_field(name, values) for name, values in self.fields.items()}
        object.__setattr__(self, "fields", checked)
        if not checked:
            raise ValueError("fields: got none with several values, expected one at least, such as lr=[0.001, 0.01]")
        self._check_seeds()
        one_of("search", self.search, SEARCHES)
        self._check_search()
        self._check_values()

    def _check_seeds(self) -> None:
        seeds = tuple(self.seeds) if isinstance(self.seeds, (list, tuple, range)) else ()
        if not seeds or not all(is_whole(seed) and 0 <= seed <= LARGEST_SEED for seed in seeds):
            raise ValueError(f"seeds: got {shown(self.seeds)}, expected whole numbers, one at least")
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds: got {shown(list(seeds))}, expected each once")
        object.__setattr__(self, "seeds", seeds)

    def _check_search(self) -> None:
        ranges = [name for name, values in self.fields.items() if isinstance(values, Range)]
        if self.search == "grid":
            if ranges:
                raise ValueError(f"{ranges[0]}: got a range with search='grid', expected a list, or 'random' or 'tpe'")
            if self.trials is not None:
                raise ValueError(f"trials: got {shown(self.trials)} with search='grid', expected None: it tries all")
        elif not is_whole(self.trials) or self.trials < 1:  # type: ignore[operator]
            raise ValueError(f"trials: got {shown(self.trials)} with search={self.search!r}, expected at least 1")
        if self.search == "random" and not ranges and self.trials > self.combinations:  # type: ignore[operator]
            raise ValueError(f"trials: got {self.trials}, expected at most {self.combinations}, all that there are")
        if not is_whole(self.search_seed) or not 0 <= self.search_seed < 1 << 32:
            raise ValueError(f"search_seed: got {shown(self.search_seed)}, expected a whole number below 2^32")
        if not isinstance(self.prune, bool):
            raise ValueError(f"prune: got {shown(self.prune)}, expected True or False")
        if self.prune and self.search != "tpe":
            raise ValueError(
                f"prune: got True with search={self.search!r}, expected 'tpe': others know no earlier cells"
            )
        if self.prune and "epochs" in self.fields:
            raise ValueError("prune: got True with epochs searched, expected one number: epochs are compared")

    def _check_values(self) -> None:
        """Every value must be one that a training takes; all must be scored on the same rows."""
        absent = set()
        for name, values in self.fields.items():
            for value in choices(values):
                config = self._some_config(name, value)
                absent.add(config.missing["validation"])  # type: ignore[index]
        if len(absent) > 1:
            raise ValueError(
                f"missing: got {', '.join(map(repr, sorted(absent)))} for validation, expected one: settings could not "
                "be compared; vary train=... alone"
            )

    def _some_config(self, name: str, value: Any) -> TrainConfig:
        """A configuration with this value, alone or with values of the other fields; ValueError where there is none."""
        try:
            return self.config({name: value}, self.seeds[0], 0)
        except ValueError:
            others = {other: choices(values) for other, values in self.fields.items() if other != name}
            for found in islice(product(*others.values()), ATTEMPTS):
                with suppress(ValueError):
                    return self.config({name: value, **dict(zip(others, found, strict=True))}, self.seeds[0], 0)
            raise

    @classmethod
    def make(
        cls: type[P],
        data: str | os.PathLike[str],
        out: str | os.PathLike[str],
        *,
        seeds: Sequence[int] = SEEDS,
        search: str = "grid",
        trials: int | None = None,
        search_seed: int = 0,
        prune: bool = False,
        **fields: Any,
    ) -> P:
        """A plan from the arguments of `mora.train`: a field given as a list or a `Range` is searched.

        A tuple is one value: targets=[("q", "v"), ("q", "k", "v")].
        """
        if "seed" in fields:
            raise ValueError(f"seed: got {shown(fields['seed'])}, expected seeds=[...]")
        searched = {name: values for name, values in fields.items() if isinstance(values, (list, Range))}
        for name, values in searched.items():
            check_field(name, values)
        rest = {name: value for name, value in fields.items() if name not in searched}
        base = TrainConfig.make(data=os.fspath(data), out=os.fspath(out), **rest)
        return cls(base, searched, tuple(seeds), search, trials, search_seed, prune)  # type: ignore[arg-type]

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return Path(self.base.out)

    @property
    def combinations(self) -> int:
        """How many settings lists have."""
        return math.prod(len(values) for values in self.fields.values() if not isinstance(values, Range))

    def config(self, values: Mapping[str, Any], seed: int, number: int) -> TrainConfig:
        """The configuration of one cell, setting `number` with one seed."""
        return config_of(self.base, values, seed, self.cell_folder(number, seed))

    def cell_folder(self, number: int, seed: int) -> Path:
        """Where the run of one cell is."""
        return self.folder / "runs" / f"{number:03}-seed{seed}"

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON types, without what may differ when a sweep goes on."""
        base = {name: value for name, value in self.base.to_dict().items() if name not in GIVEN}
        own = {name: value for name, value in vars(self).items() if name not in ("base", "fields", "seeds")}
        fields = {name: as_json(values) for name, values in self.fields.items()}
        plan = {"fields": fields, "seeds": list(self.seeds), **own, "train": base}
        return json.loads(json.dumps(plan))

    def describe(self) -> str:
        """What is tried, in words."""
        parts = []
        for name, values in self.fields.items():
            if isinstance(values, Range):
                parts.append(f"{name} {word(values.low)} to {word(values.high)}{' (log)' * values.log}")
            else:
                parts.append(f"{name} {' | '.join(map(word, values))}")
        count = self.combinations if self.trials is None else self.trials
        return f"{self.search}, {count} settings x {len(self.seeds)} seeds: {'; '.join(parts)}"


def choices(values: tuple[Any, ...] | Range) -> tuple[Any, ...]:
    """The values of a field, or the ends of a range."""
    return (values.low, values.high) if isinstance(values, Range) else values


def check_same_plan(stored: Any, now: Mapping[str, Any], folder: Path) -> None:
    """Raise ValueError that names the first thing in which a sweep differs from the one in `folder`."""
    if not isinstance(stored, Mapping):
        raise ValueError(f"{folder}: got a plan of type {type(stored).__name__}, expected an object")
    old, new = by_name(stored), by_name(now)
    for name in [*new, *(name for name in old if name not in new)]:
        before, here = (shown(plan[name]) if name in plan else "nothing" for plan in (old, new))
        if name not in old or name not in new or old[name] != new[name]:
            raise ValueError(
                f"{name}: {folder} was started with {before}, this call has {here}: expected the same plan to go on; "
                "use another --out for another sweep"
            )


def by_name(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Every part of a plan, what is searched and what all cells share, by the name that it was given by.

    The base value of a searched field says nothing.
    """
    fields = plan.get("fields")
    searched = dict(fields) if isinstance(fields, Mapping) else {}
    parts = {name: value for name, value in plan.items() if name not in ("fields", "train")}
    for name, value in flat("", plan.get("train")):
        short = name.removeprefix(".").removeprefix("mora.")
        if short.partition(".")[0] not in searched:
            parts[short] = value
    return {**searched, **parts}


def settings_key(values: Mapping[str, Any]) -> str:
    """What tells settings apart."""
    return json.dumps({name: as_json((value,)) for name, value in values.items()}, sort_keys=True)
