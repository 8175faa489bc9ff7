"""What to adapt and how: one frozen, self-validating dataclass, and the published recipes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mora.fields.names import OTHER_NAMES, TARGETS, target_hint, target_of
from mora.fields.per_tower import (
    as_lists,
    by_tower,
    check_count,
    check_keys,
    check_rank,
    label,
    of,
    ordered_layers,
    with_indices,
)
from mora.lora.fields import (
    LORA,
    METHODS,
    check_strange,
    checked_modes,
    checked_pattern,
    checked_scale,
    of_projection,
)
from mora.system.checks import check_whole, is_number, one_of
from mora.system.messages import VALUE, shown

INITS = ("official", "identity")
VARIANTS = ("official", "no-gram", "fixed-gram", "no-specific")
PAIRINGS = ("top", "bottom", "proportional")
GRAMS = ("sum", "mean")
# Past it W is lost in W + alpha C and the squares of a column overflow float32; the published ones are at most 0.1.
LARGEST_ALPHA = 1e6


@dataclass(frozen=True)
class MoraConfig:
    """How a model is adapted, equations (1) and (2); every wrong value raises a ValueError that names the field.

    `rank`, `alpha`, `targets`, `last_layers` and `layers` are one value for every tower, or one for each of the model's
    towers: alpha={"image": 0.01, "text": 0.1}.

    Attributes:
        rank: rank r_s of the specific updates; an int, one for each tower, or one for each adapted block of a tower,
            {"image": {10: 4, 11: 8}, "text": 4}.
        common_rank: rank r_c of the factors that the towers share; None means `rank`.
        alpha: MoRA's plain factor of both updates, not divided by the rank; positive, at most a million.
        dropout: probability in [0, 1) of dropping an input element of an adapted projection, base path included; of
            LoRA and DoRA an input element of the update alone.
        targets: which projections of a block; a subset of "q", "k", "v", "out" (attention), "fc1", "fc2" (MLP). Names
            of PEFT and transformers are read ("q_proj", "query", "to_q", "out_proj", "c_fc") and kept as these.
        last_layers: adapt the last n blocks of each tower; towers may differ in depth, see `pair_layers`. By tower, a
            block that has no counterpart stands alone.
        first_layer: adapt from this block index on instead; needs towers of equal depth, or pair_layers="bottom".
        init: "official" draws the factors as the paper does (the patched model does not start as the pretrained one);
            "identity" starts the common magnitude at zero, so that it does.
        variant: "official"; the ablations "no-gram" (G = I: the towers no longer see each other, and the common update
            is about d / r_c times weaker), "fixed-gram" (G = (d / r_c) I with the d of the other towers, what the Gram
            matrix is at the start on average: the towers do not see each other, at equal strength) and "no-specific"
            (the common term alone).
        backend: which kernels run: "auto" picks by device, "reference", "torch" or "triton" insist.
        layers: adapt the blocks of these indices instead; for all towers or by tower.
        pair_layers: which blocks of towers of unequal depth share factors: those as far from the "top", those as far
            from the "bottom", or those at the same relative height, "proportional".
        adapt: what happens to each tower, {"image": "mora", "text": "lora"}, a method or "frozen"; None: `method`.
        gram: what G is where several other towers share factors with a block: the "sum" of their Gram matrices, which
            grows with their number, or the "mean", which keeps what alpha means. None: "mean". Of two towers the same.
        method: "mora", or PEFT's "lora" or "dora", which share `rank`, `dropout`, `targets` and blocks with it.
        lora_alpha: LoRA's and DoRA's scale is s = lora_alpha / rank; None means the rank itself, s = 1, as PEFT's
            defaults have it (r = lora_alpha = 8, no dropout). By tower where it is a mapping.
        use_rslora: s = lora_alpha / sqrt(rank) instead.
        rank_pattern: LoRA's ranks that differ, by target or projection: {"q": 8, "image.11.v": 4}.
        alpha_pattern: lora_alpha that differs, likewise.
    """

    rank: int | dict[str, int | dict[int, int]] = 4
    common_rank: int | None = None
    alpha: float | dict[str, float] = 0.01
    dropout: float = 0.1
    targets: tuple[str, ...] | dict[str, tuple[str, ...]] = ("q", "v")
    last_layers: int | dict[str, int] = 2
    first_layer: int | None = None
    init: str = "official"
    variant: str = "official"
    backend: str = "auto"
    layers: tuple[int, ...] | dict[str, tuple[int, ...]] | None = None
    pair_layers: str = "top"
    adapt: dict[str, str] | None = None
    gram: str | None = None
    method: str = "mora"
    lora_alpha: float | dict[str, float] | None = None
    use_rslora: bool = False
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", by_tower("rank", self.rank, check_rank))
        self._check_methods()
        self._check_common_rank()
        object.__setattr__(self, "alpha", by_tower("alpha", self.alpha, check_alpha))
        if not is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: got {shown(self.dropout)}, expected a probability in [0, 1)")
        object.__setattr__(self, "targets", by_tower("targets", self.targets, ordered_targets))
        self._check_layers()
        one_of("init", self.init, INITS)
        one_of("variant", self.variant, VARIANTS)
        one_of("backend", self.backend, ("auto", "reference", "torch", "triton"))
        one_of("gram", "mean" if self.gram is None else self.gram, GRAMS)
        if self.variant == "no-specific" and self.init == "identity":
            raise ValueError(
                "init: got 'identity' with variant='no-specific', expected 'official': the common term alone has no "
                "start that is both the pretrained model and trainable"
            )
        usual = {name: field.default for name, field in self.__dataclass_fields__.items()}
        check_strange(vars(self), self.modes(), usual)

    def _check_methods(self) -> None:
        """Which method adapts which tower, and what LoRA needs to know."""
        one_of("method", self.method, METHODS)
        if self.adapt is not None:
            object.__setattr__(self, "adapt", checked_modes(self.adapt))
        object.__setattr__(self, "lora_alpha", checked_scale(self.lora_alpha))
        if not isinstance(self.use_rslora, bool):
            raise ValueError(f"use_rslora: got {shown(self.use_rslora)}, expected True or False")
        for name in ("rank_pattern", "alpha_pattern"):
            object.__setattr__(self, name, checked_pattern(name, getattr(self, name)))

    def _check_common_rank(self) -> None:
        if self.common_rank is not None:
            check_whole("common_rank", self.common_rank, 1, ", or None")
        elif len({*self.ranks()}) > 1 and "mora" in self.modes():
            raise ValueError(
                f"common_rank: got None with rank={shown(self.rank)}, expected an int: the towers share one"
            )

    def _check_layers(self) -> None:
        """Which blocks, and how they are paired."""
        object.__setattr__(self, "last_layers", by_tower("last_layers", self.last_layers, check_count))
        one_of("pair_layers", self.pair_layers, PAIRINGS)
        if self.first_layer is not None:
            check_whole("first_layer", self.first_layer, 0, ", or None")
            if self.pair_layers == "proportional":
                raise ValueError("first_layer: got one with pair_layers='proportional', expected layers or last_layers")
        if self.layers is not None:
            object.__setattr__(self, "layers", by_tower("layers", self.layers, ordered_layers))
            if self.first_layer is not None:
                raise ValueError("layers: got them with first_layer, expected one of the two")

    def ranks(self) -> Iterator[int]:
        """Every r_s that `rank` names."""
        for rank in self.rank.values() if isinstance(self.rank, dict) else (self.rank,):
            yield from rank.values() if isinstance(rank, dict) else (rank,)

    def specific_rank(self, modality: str, layer: int | None = None) -> int:
        """r_s of one block of one tower; `check_modalities` says that the tower is there.

        Raises ValueError for a block that `rank` does not name.
        """
        rank = self.rank[modality] if isinstance(self.rank, dict) else self.rank
        if isinstance(rank, int):
            return rank
        if layer not in rank:
            raise ValueError(f"rank[{modality!r}]: got blocks {[*rank]}, expected {layer} among them, which is adapted")
        return rank[layer]

    def rank_of(self, modality: str, layer: int, target: str) -> int:
        """r_s of MoRA, r of LoRA, of one projection."""
        rank = self.specific_rank(modality, layer)
        if self.mode(modality) not in LORA:
            return rank
        return int(of_projection(self.rank_pattern, modality, layer, target, rank))

    def scale_of(self, modality: str, layer: int, target: str) -> float:
        """s of LoRA and DoRA of one projection: `lora_alpha` / r, or / sqrt(r)."""
        rank = self.rank_of(modality, layer, target)
        usual = None if self.lora_alpha is None else of(self.lora_alpha, modality)
        scale = of_projection(self.alpha_pattern, modality, layer, target, rank if usual is None else usual)
        return float(scale) / (rank**0.5 if self.use_rslora else rank)

    def alpha_of(self, modality: str) -> float:
        """alpha of one tower."""
        return float(of(self.alpha, modality))

    def targets_of(self, modality: str) -> tuple[str, ...]:
        """The adapted projections of one tower's blocks."""
        return of(self.targets, modality)

    def at(self, modality: str, layer: int) -> MoraConfig:
        """The configuration of one block: what may differ by tower or block is one value in it."""
        return replace(
            self,
            rank=self.specific_rank(modality, layer),
            common_rank=self.shared_rank,
            alpha=self.alpha_of(modality) if self.mode(modality) == "mora" else self.alpha,
            targets=self.targets_of(modality),
        )

    def gram_of(self, pairs: Iterable[Iterable[str]]) -> str | None:
        """What G is where more than two towers share factors, "mean" or "sum"; else None."""
        many = any(sum(self.mode(modality) == "mora" for modality in pair) > 2 for pair in pairs)
        return (self.gram or "mean") if many else None

    def gram_scale(self, others: int) -> float:
        """The factor of the sum of so many other towers' Gram matrices."""
        return 1.0 if self.gram == "sum" else 1.0 / others

    def mode(self, modality: str) -> str:
        """What happens to one tower: a method, or "frozen"."""
        return self.method if self.adapt is None else self.adapt[modality]

    def modes(self) -> set[str]:
        """The methods that some tower has."""
        return {self.method} if self.adapt is None else {*self.adapt.values()} - {"frozen"}

    def check_modalities(self, modalities: Iterable[str]) -> None:
        """Raise ValueError that names what a model's towers and the keys of a field by tower do not share."""
        towers = [*modalities]
        check_keys("adapt", self.adapt, towers, towers)
        adapted = [modality for modality in towers if self.mode(modality) != "frozen"]
        for field in ("rank", "targets", "last_layers", "layers"):
            check_keys(field, getattr(self, field), towers, adapted)
        coupled = [modality for modality in adapted if self.mode(modality) == "mora"]
        check_keys("alpha", self.alpha, towers, coupled)
        check_keys("lora_alpha", self.lora_alpha, towers, [m for m in adapted if m not in coupled])

    @property
    def shared_rank(self) -> int:
        """r_c, the rank of the common factors."""
        return next(self.ranks()) if self.common_rank is None else self.common_rank

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types; those of `LATER` only where they say something."""
        return {
            field: as_lists(value)
            for field, value in asdict(self).items()
            if field not in LATER or value != LATER[field]
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> MoraConfig:
        """The inverse of `to_dict`; an unknown or wrong field raises ValueError that begins with its name."""
        if not isinstance(fields, Mapping):
            raise ValueError(
                f"fields: got {shown(fields)}, expected a mapping of {', '.join(cls.__dataclass_fields__)}"
            )
        check_fields(fields)
        given = dict(fields)
        if isinstance(given.get("rank"), Mapping):
            given["rank"] = {modality: with_indices(rank) for modality, rank in given["rank"].items()}
        return cls(**given)


# Fields that earlier versions do not read, and what they mean to them.
LATER: dict[str, Any] = {"layers": None, "pair_layers": "top", "adapt": None, "gram": None, "method": "mora"}
LATER |= {"lora_alpha": None, "use_rslora": False, "rank_pattern": None, "alpha_pattern": None}


def check_alpha(name: str, alpha: Any) -> float:
    """One tower's alpha."""
    if not is_number(alpha) or not 0 < alpha <= LARGEST_ALPHA:
        raise ValueError(f"{name}: got {shown(alpha)}, expected a positive number of at most {LARGEST_ALPHA:g}")
    return alpha


def ordered_targets(name: str, targets: Any) -> tuple[str, ...]:
    """The targets of one tower under their names here, each once, in the order of `TARGETS`."""
    choices = ", ".join(map(repr, TARGETS))
    if isinstance(targets, str) or not isinstance(targets, Sequence) or not targets:
        raise ValueError(f"{name}: got {shown(targets)}, expected a non-empty sequence out of {choices}")
    found = [target_of(target) if isinstance(target, str) else None for target in targets]
    for target, known in zip(targets, found, strict=True):
        if known is None:
            raise ValueError(
                f"{name}: got unknown target {shown(target)}{target_hint(target)}, expected some of {choices}"
            )
    if len(set(found)) < len(found):
        raise ValueError(f"{name}: got {shown(targets)}, expected each target once")
    return tuple(target for target in TARGETS if target in found)


def check_fields(fields: Iterable[str], error: type[Exception] = ValueError) -> None:
    """Raise `error` that names the first unknown field, what it is called here, and every field there is."""
    for name in fields:
        if name not in MoraConfig.__dataclass_fields__:
            hint = f" ({name} is {OTHER_NAMES[name]} here)" if name in OTHER_NAMES else ""
            known = ", ".join(MoraConfig.__dataclass_fields__)
            raise error(f"{label(name, VALUE)}: got an unknown field{hint}, expected some of {known}")


# OpenAI CLIP ViT-B/16, blocks 10 and 11 of 12 in both towers (METHOD section 3 of the paper's notes; docs/design.md).
PRESETS: dict[str, MoraConfig] = {
    "mmimdb": MoraConfig(rank=4, alpha=0.001, targets=("q", "k")),
    "food101": MoraConfig(rank=4, alpha=0.01, targets=("q", "v")),
    "hateful_memes": MoraConfig(rank=8, alpha=0.1, targets=("k", "v")),
}
