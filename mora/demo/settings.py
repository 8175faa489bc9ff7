"""What one demo run does: every choice by name, checked, with the values that were found on the validation part."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mora.config import MoraConfig
from mora.data.missing import KINDS
from mora.runs.methods import MORA_VARIANTS
from mora.system.checks import one_of
from mora.system.machine import cores
from mora.training.config import TrainConfig

DATA = "openmoji"


class Choice(NamedTuple):
    """What differs between methods: the adapters' learning rate, and the scale of their update.

    `scale` is `lora_alpha / rank` for LoRA and DoRA, `alpha` of equation (1) for MoRA.
    """

    learning_rate: float
    scale: float


# Best validation accuracy of the grid in docs/demo.md (`python -m mora.demo.grid`); the test part was not looked at.
CHOSEN: dict[str, Choice] = {
    "frozen": Choice(0.0, 0.0),
    "lora": Choice(3e-3, 4.0),
    "dora": Choice(3e-3, 2.0),
    "mora": Choice(3e-3, 0.1),
    "mora-no-gram": Choice(3e-3, 0.1),
    "mora-no-specific": Choice(3e-3, 0.001),
}
METHODS = tuple(CHOSEN)

LABELS = {
    "frozen": "frozen + head",
    "lora": "LoRA",
    "dora": "DoRA",
    "mora": "MoRA",
    "mora-no-gram": "MoRA, no Gram",
    "mora-no-specific": "MoRA, no specific",
}


@dataclass(frozen=True)
class Settings:
    """The arguments of `mora demo` and the recipe; a wrong value raises a ValueError that names it.

    Attributes:
        out: folder of the results.
        epochs: passes over the training part; the best one on validation is kept.
        seeds: number of runs per method, seeds 0, 1, ...
        rate: share of training and validation rows that lack a modality.
        missing: which one they lack: "both" (either kind), "image" or "text".
        last_layers: adapted blocks at the top of each tower.
        rank: of the adapters.
        alpha: of MoRA, instead of the chosen one; None keeps it.
        methods: a subset of `METHODS`.
        device: where to train, "cpu" or "cuda".
        jobs: runs at once, each on one CPU thread; on a GPU one at a time.
        limit: use at most so many rows of each part; None means all.
        choices: learning rate and scale by method.
    """

    out: Path = Path("demo")
    epochs: int = 8
    seeds: int = 3
    rate: float = 0.7
    missing: str = "both"
    last_layers: int = 1
    rank: int = 4
    alpha: float | None = None
    methods: tuple[str, ...] = METHODS
    device: str = "cpu"
    jobs: int = field(default_factory=cores)
    limit: int | None = None
    choices: dict[str, Choice] = field(default_factory=lambda: dict(CHOSEN))
    batch: int = 32
    head_learning_rate: float = 3e-3
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
        if not self.methods:
            raise ValueError(f"methods: got none, expected some of {', '.join(METHODS)}")
        for method in self.methods:
            one_of("methods", method, METHODS)
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods: got {' '.join(self.methods)}, expected each once")

    def choice(self, method: str) -> Choice:
        """Learning rate and scale of one method."""
        choice = self.choices[method]
        return choice._replace(scale=self.alpha) if self.alpha is not None and method in MORA_VARIANTS else choice

    def name(self, method: str, seed: int) -> str:
        """Of a run's folder; cells of a grid have different ones."""
        choice = self.choice(method)
        return f"{method}-{choice.learning_rate:g}-{choice.scale:g}-{self.head_learning_rate:g}-seed{seed}"

    def config(self, method: str, seed: int, folder: Path, rows: Path) -> TrainConfig:
        """One run as `mora train` does it, in `folder`, with rows past the frozen blocks in `rows`."""
        learning_rate, scale = self.choice(method)
        missing = f"{self.missing}:{self.rate}"
        adapters = MoraConfig(
            rank=self.rank,
            alpha=scale if method in MORA_VARIANTS else MoraConfig.alpha,
            dropout=self.dropout,
            targets=self.targets,
            last_layers=self.last_layers,
        )
        return TrainConfig(
            data=DATA,
            out=str(folder),
            method="linear" if method == "frozen" else method,
            mora=adapters,
            lora_scale=scale if method in ("lora", "dora") else TrainConfig.lora_scale,
            missing={"train": missing, "validation": missing},
            epochs=self.epochs,
            batch=self.batch,
            lr=learning_rate or self.head_learning_rate,
            head_lr=self.head_learning_rate,
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
        choices = {method: self.choice(method)._asdict() for method in self.methods}
        return {**asdict(self), "out": str(self.out), "choices": choices}
