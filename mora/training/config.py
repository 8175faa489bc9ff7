"""What one training run does: every choice by name, checked before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from mora.adapters.prompts import MMP, PromptSize, check_size
from mora.config import PRESETS, MoraConfig
from mora.data.dataset import ON_BROKEN
from mora.data.tables import FORM, Missing, by_split
from mora.heads import HEADS, LINEAR, MISSING_EMBEDDINGS, SUBSTITUTE, ZERO_SHOT
from mora.runs.methods import METHODS, PROMPTED
from mora.runs.objectives import CLASSIFICATION, check_objective, head_of, missing_of
from mora.savings.options import Savings
from mora.system.checks import is_whole, one_of
from mora.training import defaults

# A generator takes 64 bits; offsets by split and process are added to a seed.
LARGEST_COUNT, LARGEST_SEED = (1 << 31) - 1, (1 << 62) - 1
PRECISIONS = ("fp32", "fp16", "bf16")
CACHES, CACHE_DTYPES = ("auto", "memory", "disk", "off"), ("exact", "float16", "bfloat16")
TOKEN_CHOICES = ("auto", "official", "plain")
# Fields that may change when a run goes on: none of them moves a number on the same kind of device. Where data, tables
# and weights lie may change, too: their fingerprints may not.
FREE_ON_RESUME = (
    "out", "device", "workers", "checkpoint_minutes", "tracker", "log_every", "data", "tables", "pretrained",
    "cache_gb", "cache_folder",
)  # fmt: skip


class Recipe(NamedTuple):
    """What the published runs set besides the adapters."""

    epochs: int
    batch: int
    weight_decay: float


RECIPES = {
    "mmimdb": Recipe(20, 256, 0.02),
    "food101": Recipe(20, 256, 0.02),
    "hateful_memes": Recipe(5, 16, 0.1),
}


@dataclass(frozen=True)
class TrainConfig:
    """The arguments of `mora.train`; a wrong value raises a ValueError that names the field.

    `TrainConfig.make` takes the same fields, a preset, and the fields of `MoraConfig` by their own names; the defaults
    here are the published recipe's, `make` without a preset has others (`mora.training.defaults`).

    Attributes:
        data: "openmoji", a folder of a data set, or a manifest; see `mora.data.open_dataset`.
        out: the run folder.
        backbone: "tiny" or a name of open_clip.
        pretrained: open_clip's tag, or a file of weights.
        method: one of `mora.runs.methods.METHODS`.
        objective: "classification", or "contrastive": image-text pairs, without labels and without a head.
        head: "linear", "pattern-bias" or "prototypes": see `mora.MissingModalityClassifier`.
        missing_embedding: what stands for the embedding of a missing modality: "substitute", "learned" or "zero".
        mora: ranks, targets, blocks, dropout (for every method) and what is MoRA's own.
        lora_scale: `lora_alpha / rank` of LoRA and DoRA.
        prompt_length: prompts before each sample's own rows, of MMP and DCP.
        prompt_depth: blocks with prompts of their own, from the first one; no more than the shallowest tower has.
        missing: simulated absence per split: "none", "both:0.7" (kind:rate, a rate counts what is missing;
            "both:0.7:0.25" takes the image from a quarter of these), a file of a table, or several as
            "train=both:0.7,test=image:0.5" (the rest "none"); or a mapping of these.
        tables: folder of missing tables, ours or published: they are read, not drawn; None draws them.
        patches, word_drop: share of every image that goes black, of every text's words that are dropped.
        epochs: passes over the training split; the best one on validation is kept.
        batch: rows per forward pass and process; a step takes batch x accumulation x processes.
        accumulation: forward passes per step.
        lr: peak learning rate.
        head_lr: peak learning rate of the head; None is `lr`.
        betas, eps, weight_decay: of AdamW.
        warmup: share of all steps in which the learning rate rises from 0, linearly; then it falls as a cosine, to 0.
        precision: "fp32", "fp16" (a GPU; with loss scaling) or "bf16": what autocast computes in.
        seed: of head, adapters, order, dropout and missing tables.
        device: "auto", "cpu" or "cuda".
        workers: processes that decode images; None is 0 on a CPU, up to 8 on a GPU.
        token_policy: "official" ends long texts one token earlier, as the published runs did; "plain" does not; "auto"
            is "official" for the three published data sets.
        on_broken: "raise" or "skip" images that cannot be read.
        data_name, metric, split_seed, extra_columns: as in `open_dataset` (there `name`, `metric`, `seed`): what a
            data set is called and scored by, how one without splits is split, whether unknown columns are let be.
        limit: use about so many rows of each split, spread over it; None is all.
        tracker: "none", "tensorboard", or another name that accelerate knows.
        checkpoint_minutes: a checkpoint is written after every epoch, and when so many minutes have passed.
        log_every: steps between two lines of losses in metrics.jsonl.
        savings: what is left out of the computation: "all", "none", or some of "pooled", "missing", "trimmed", "lean"
            (`mora.Savings`).
        cache: where rows past the frozen blocks are kept for the next epoch: "memory", "disk", "off", or "auto", memory
            where they fit, else disk where they fit, else nowhere; with a `cache_folder`, disk first.
        cache_dtype: of these rows: "exact", "float16" or "bfloat16".
        cache_gb: the most they may take, in 10^9 bytes; None is half of the free memory or disk.
        cache_folder: where they are kept on disk, for other runs too; None is a folder in the user's cache folder.
    """

    data: str
    out: str
    backbone: str = "tiny"
    pretrained: str | None = None
    method: str = "mora"
    objective: str = CLASSIFICATION
    head: str = LINEAR
    missing_embedding: str = SUBSTITUTE
    mora: MoraConfig = field(default_factory=MoraConfig)
    lora_scale: float = 1.0
    prompt_length: int = PromptSize().length
    prompt_depth: int = PromptSize().depth
    missing: str | Mapping[str, str] = "none"
    tables: str | None = None
    patches: float = 0.0
    word_drop: float = 0.0
    epochs: int = 20
    batch: int = 64
    accumulation: int = 1
    lr: float = 1e-2
    head_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.02
    warmup: float = 0.1
    precision: str = "fp32"
    seed: int = 42
    device: str = "auto"
    workers: int | None = None
    token_policy: str = "auto"
    on_broken: str = "raise"
    data_name: str | None = None
    metric: str | None = None
    split_seed: int = 0
    extra_columns: bool = False
    limit: int | None = None
    tracker: str = "none"
    checkpoint_minutes: float = 5.0
    log_every: int = 10
    savings: str = "all"
    cache: str = "auto"
    cache_dtype: str = "exact"
    cache_gb: float | None = None
    cache_folder: str | None = None

    def __post_init__(self) -> None:
        for name in ("data", "out", "backbone", "tracker", "device"):
            value = getattr(self, name)
            if isinstance(value, Path):
                object.__setattr__(self, name, str(value))
            elif not isinstance(value, str) or not value:
                raise ValueError(f"{name}: got {value!r}, expected a name or a path")
        if self.tables is not None and not Path(self.tables).is_dir():
            raise ValueError(f"tables: got {self.tables}, which is no folder, expected one of missing tables")
        one_of("method", self.method, METHODS)
        one_of("head", self.head, HEADS)
        one_of("missing_embedding", self.missing_embedding, MISSING_EMBEDDINGS)
        one_of("precision", self.precision, PRECISIONS)
        one_of("token_policy", self.token_policy, TOKEN_CHOICES)
        one_of("on_broken", self.on_broken, ON_BROKEN)
        one_of("cache", self.cache, CACHES)
        one_of("cache_dtype", self.cache_dtype, CACHE_DTYPES)
        object.__setattr__(self, "savings", str(Savings.parse(self.savings)))
        metric = check_objective(self.objective, self.method, self.head, self.missing_embedding, self.metric)
        object.__setattr__(self, "metric", metric)
        if not isinstance(self.mora, MoraConfig):
            raise ValueError(f"mora: got {type(self.mora).__name__}, expected a MoraConfig")
        if self.mora.variant != "official":
            raise ValueError(f"variant: got {self.mora.variant!r}, expected method='mora-{self.mora.variant}' instead")
        if self.method == ZERO_SHOT and (self.head, self.missing_embedding) != (LINEAR, SUBSTITUTE):
            got = self.head if self.head != LINEAR else self.missing_embedding
            raise ValueError(f"head, missing_embedding: got {got!r} with method {ZERO_SHOT!r}, expected neither")
        check_size(self.method if self.method in PROMPTED else MMP, self.prompts)
        self._check_numbers()
        object.__setattr__(self, "missing", by_split(self.missing, check_missing))

    def _check_numbers(self) -> None:
        for name, least in (
            ("epochs", 1),
            ("batch", 1),
            ("accumulation", 1),
            ("log_every", 1),
            ("seed", 0),
            ("split_seed", 0),
        ):
            check_whole(name, getattr(self, name), least)
        if self.limit is not None:
            check_whole("limit", self.limit, 1)
        if self.workers is not None:
            check_whole("workers", self.workers, 0)
        for name in ("lr", "eps", "lora_scale", "checkpoint_minutes"):
            object.__setattr__(self, name, check_number(name, getattr(self, name), 0, math.inf, open_left=True))
        if self.cache_gb is not None:
            object.__setattr__(self, "cache_gb", check_number("cache_gb", self.cache_gb, 0, math.inf, open_left=True))
        if self.head_lr is not None:
            object.__setattr__(self, "head_lr", check_number("head_lr", self.head_lr, 0, math.inf, open_left=True))
        object.__setattr__(self, "weight_decay", check_number("weight_decay", self.weight_decay, 0, math.inf))
        for name in ("patches", "word_drop"):
            object.__setattr__(self, name, check_number(name, getattr(self, name), 0, 1))
        object.__setattr__(self, "warmup", check_number("warmup", self.warmup, 0, 1))
        if not isinstance(self.betas, (tuple, list)) or len(self.betas) != 2:
            raise ValueError(f"betas: got {self.betas!r}, expected two numbers")
        object.__setattr__(self, "betas", tuple(check_number("betas", beta, 0, 1) for beta in self.betas))

    @property
    def head_kind(self) -> str:
        """The head of the run: `head`, but for an objective without one and a method that brings its own."""
        return head_of(self.objective, self.method, self.head)

    @property
    def missing_kind(self) -> str:
        """What stands for a missing embedding: `missing_embedding`, or zero where there is no head."""
        return missing_of(self.objective, self.missing_embedding)

    @property
    def prompts(self) -> PromptSize:
        """Of MMP and DCP."""
        return PromptSize(self.prompt_length, self.prompt_depth)

    @classmethod
    def make(cls, preset: str | None = None, **given: Any) -> TrainConfig:
        """A config from fields of `TrainConfig` and of `MoraConfig`; what is not given comes from the preset.

        Without a preset, learning rates, alpha and init that are not given are those of `mora.training.defaults`.

        Args:
            preset: "mmimdb", "food101" or "hateful_memes": the adapters and the recipe of the published run.
            given: fields; `mora=` replaces the preset's, and single fields of it (`rank=`, `alpha=`) come on top.

        Raises ValueError for an unknown field or a wrong value.
        """
        own = {one.name for one in fields(cls)}
        adapters = {one.name for one in fields(MoraConfig)} - own  # `method` names baselines as well
        if unknown := sorted(set(given) - own - adapters):
            known = ", ".join(sorted(own | adapters | {"preset"}))
            raise ValueError(f"{unknown[0]}: got an unknown field, expected some of {known}")
        values = {name: value for name, value in given.items() if name in own}
        if preset is None:
            method = str(values.get("method", cls.method))
            config = MoraConfig(**({} if "variant" in given else defaults.adapters(method)))
            values = {**defaults.recipe(values, method), **values}
        else:
            one_of("preset", preset, tuple(PRESETS))
            config = PRESETS[preset]
            values = {**RECIPES[preset]._asdict(), **values}
        config = values.pop("mora", config)
        if not isinstance(config, MoraConfig):
            raise ValueError(f"mora: got {type(config).__name__}, expected a MoraConfig")
        changes = {name: value for name, value in given.items() if name in adapters}
        return cls(mora=MoraConfig(**{**asdict(config), **changes}), **values)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return {**asdict(self), "mora": self.mora.to_dict(), "betas": list(self.betas), "missing": dict(self.missing)}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The inverse of `to_dict`; an unknown field raises ValueError."""
        if unknown := sorted(set(values) - {one.name for one in fields(cls)}):
            raise ValueError(f"{unknown[0]}: got an unknown field, expected {', '.join(cls.__dataclass_fields__)}")
        return cls(**{**values, "mora": MoraConfig.from_dict(values["mora"]), "betas": tuple(values["betas"])})


def check_whole(name: str, value: object, least: int) -> None:
    """Raise ValueError unless `value` is an int from `least` to what a computer counts to."""
    most = LARGEST_SEED if name.endswith("seed") else LARGEST_COUNT
    if not is_whole(value) or value < least:  # type: ignore[operator]
        raise ValueError(f"{name}: got {value!r}, expected a whole number of at least {least}")
    if value > most:  # type: ignore[operator]
        raise ValueError(f"{name}: got {value!r}, expected a whole number of at most {most:,}")


def check_number(name: str, value: Any, low: float, high: float, open_left: bool = False) -> float:
    """The value as a float; ValueError unless it lies between `low` and `high` and is finite."""
    right = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not right or not low <= value <= high or (open_left and value == low):
        wanted = (
            "above 0" if open_left else f"between {low:g} and {high:g}" if high < math.inf else f"of at least {low:g}"
        )
        raise ValueError(f"{name}: got {value!r}, expected a number {wanted}")
    return float(value)


def check_missing(specification: object) -> str:
    """One split's specification, canonical: what `Missing.parse` reads, or an existing file of a table."""
    if isinstance(specification, (str, Path)) and str(specification) and Path(specification).is_file():
        return str(specification)
    if not isinstance(specification, str):
        raise ValueError(f"missing: got {specification!r}, expected {FORM}, or the file of a table")
    if specification.endswith((".pt", ".safetensors")):
        raise ValueError(
            f"missing: got {specification!r}, which does not exist, expected {FORM}, or the file of a table"
        )
    return str(Missing.parse(specification))
