"""What one demo run does: every choice by name, checked, with the values that were found on the validation part."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mora.config import MoraConfig
from mora.data.missing import KINDS
from mora.demo.methods import CURVE, METHODS, OURS, QUICK
from mora.demo.plan import Choice, chosen
from mora.demo.tasks import TASKS
from mora.system.checks import one_of
from mora.system.machine import cores
from mora.training.config import TrainConfig

FULL_SEEDS = 10
CURVE_RATES = (0.2, 0.4, 0.6, 0.8, 1.0)  # shares missing in the test part, beside none and the one trained with
CURVE_TASK = "badges"


def choices() -> dict[str, dict[str, Any]]:
    """A copy of what the search chose, by task and method."""
    return {task: dict(found) for task, found in chosen().items()}


@dataclass(frozen=True)
class Settings:
    """The arguments of `mora demo` and the recipe; a wrong value raises a ValueError that names the field.

    Attributes:
        out: folder of the results.
        epochs: passes over the training part; the best one on validation is kept.
        seeds: number of runs per method, seeds 0, 1, ...; the second task and trainings on complete rows have half of
            them, one at least.
        rate: share of training and validation rows that lack a modality.
        missing: which one they lack: "both" (either kind), "image" or "text".
        last_layers: adapted blocks at the top of each tower.
        rank: of the adapters.
        alpha: of MoRA, instead of the chosen one; None keeps it.
        methods: a subset of `METHODS`.
        tasks: a subset of `TASKS`.
        device: where to train, "cpu" or "cuda".
        jobs: runs at once, each on one CPU thread; on a GPU one at a time.
        limit: use at most so many rows of each part; None means all.
        choices: by task, the head's learning rate ("head") and learning rate and scale by method.
    """

    out: Path = Path("demo")
    epochs: int = 6
    seeds: int = 2
    rate: float = 0.7
    missing: str = "both"
    last_layers: int = 1
    rank: int = 4
    alpha: float | None = None
    methods: tuple[str, ...] = QUICK
    tasks: tuple[str, ...] = tuple(TASKS)
    device: str = "cpu"
    jobs: int = field(default_factory=cores)
    limit: int | None = None
    choices: dict[str, dict[str, Any]] = field(default_factory=choices)
    batch: int = 32
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.02
    warmup: float = 0.1
    dropout: float = 0.1
    targets: tuple[str, ...] = ("q", "v")

    def __post_init__(self) -> None:
        for name in ("epochs", "seeds", "last_layers", "rank", "jobs", "batch", "limit"):
            value = getattr(self, name)
            if value is None and name == "limit":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: got {value!r}, expected a whole number of at least 1")
        if not 0.0 <= self.rate <= 1.0:
            raise ValueError(f"rate: got {self.rate!r}, expected a share between 0 and 1")
        if self.alpha is not None and not self.alpha > 0:
            raise ValueError(f"alpha: got {self.alpha!r}, expected a positive number")
        one_of("missing", self.missing, KINDS)
        for name, known in (("methods", METHODS), ("tasks", TASKS)):
            given = getattr(self, name)
            if not given:
                raise ValueError(f"{name}: got none, expected some of {', '.join(known)}")
            for one in given:
                one_of(name, one, tuple(known))
            if len(set(given)) < len(given):
                raise ValueError(f"{name}: got {' '.join(given)}, expected each once")

    def choice(self, task: str, method: str) -> Choice:
        """Learning rate and scale of one method; a method that was not searched on a task has those of the first."""
        choice = self.choices[task].get(method) or self.choices[CURVE_TASK].get(method) or Choice(0.0, 0.0)
        return choice._replace(scale=self.alpha) if self.alpha is not None and method in OURS else choice

    def seeds_of(self, task: str) -> int:
        """How many runs a method has on a task."""
        return self.seeds if task == self.tasks[0] else self.fewer_seeds

    @property
    def fewer_seeds(self) -> int:
        """How many runs a method has on the second task, and trained complete."""
        return max(1, self.seeds // 2)

    def complete_methods(self, task: str) -> tuple[str, ...]:
        """Those that are trained with nothing missing, too."""
        return tuple(m for m in CURVE if m in self.methods) if task == CURVE_TASK and self.rate else ()

    def config(
        self, task: str, method: str, seed: int, folder: Path, rows: Path, complete: bool = False
    ) -> TrainConfig:
        """One run as `mora train` does it, in `folder`, with rows past the frozen blocks in `rows`."""
        learning_rate, scale = self.choice(task, method)
        how, head = METHODS[method], self.choices[task]["head"]
        missing = "none" if complete else f"{self.missing}:{self.rate}"
        adapters = MoraConfig(
            rank=self.rank,
            alpha=scale if scale and how.scale == "alpha" else MoraConfig.alpha,
            dropout=self.dropout,
            targets=self.targets,
            last_layers=self.last_layers,
            init=how.init,
        )
        return TrainConfig(
            data=TASKS[task].data,
            out=str(folder),
            method=how.method,
            mora=adapters,
            lora_scale=scale if scale and how.scale == "lora_scale" else TrainConfig.lora_scale,
            missing={"train": missing, "validation": missing},
            epochs=self.epochs,
            batch=self.batch,
            lr=learning_rate or head,
            head_lr=head,
            betas=self.betas,
            weight_decay=self.weight_decay,
            warmup=self.warmup,
            seed=seed,
            device=self.device,
            limit=self.limit,
            cache="disk",
            cache_folder=str(rows),
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        used = {t: {m: self.choice(t, m)._asdict() for m in self.methods} for t in self.tasks}
        heads = {task: self.choices[task]["head"] for task in self.tasks}
        return {**asdict(self), "out": str(self.out), "choices": used, "head_learning_rates": heads}
