"""What to adapt and how: one frozen, self-validating dataclass, and the published recipes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mora.system.messages import VALUE, printable, shown

TARGETS = ("q", "k", "v", "out")
INITS = ("official", "identity")
VARIANTS = ("official", "no-gram", "no-specific")
# Past it W is lost in W + alpha C and the squares of a column overflow float32; the published ones are at most 0.1.
LARGEST_ALPHA = 1e6
LARGEST_WHOLE = 1 << 16  # of ranks and block indices: no tower is as wide or as deep


def is_whole(value: object) -> bool:
    """Whether `value` is an int and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def one_of(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: got {shown(value)}, expected one of {', '.join(map(repr, choices))}")


def check_whole(name: str, value: object, least: int, more: str = "") -> None:
    """Raise ValueError unless `value` is an int from `least` to `LARGEST_WHOLE`."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= LARGEST_WHOLE:
        raise ValueError(
            f"{name}: got {shown(value)}, expected an int of at least {least} (at most {LARGEST_WHOLE:,}){more}"
        )


def label(name: object) -> str:
    """How a message calls a field that came from a file."""
    return printable(name)[:VALUE] if isinstance(name, str) else shown(name)


def is_number(value: object) -> bool:
    """Whether `value` is an int or a float and not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class MoraConfig:
    """How a CLIP is adapted, equations (1) and (2); every wrong value raises a ValueError that names the field.

    Attributes:
        rank: rank r_s of the specific updates; an int, or one for each of the model's towers, {"image": 4, "text": 8}.
        common_rank: rank r_c of the factors that the towers share; None means `rank`.
        alpha: plain factor of both updates, not divided by the rank; positive, at most a million.
        dropout: probability in [0, 1) of dropping an input element of an adapted projection, base path included.
        targets: which projections of an attention block; a subset of "q", "k", "v", "out".
        last_layers: adapt the last n blocks of each tower, paired from the top (towers may differ in depth).
        first_layer: adapt from this block index on instead; needs towers of equal depth.
        init: "official" draws the factors as the paper does (the patched model does not start as the pretrained one);
            "identity" starts the common magnitude at zero, so that it does.
        variant: "official"; the ablations "no-gram" (G = I: the towers no longer see each other) and "no-specific"
            (the common term alone).
        backend: which kernels run: "auto" picks by device, "reference", "torch" or "triton" insist.
    """

    rank: int | dict[str, int] = 4
    common_rank: int | None = None
    alpha: float = 0.01
    dropout: float = 0.1
    targets: tuple[str, ...] = ("q", "v")
    last_layers: int = 2
    first_layer: int | None = None
    init: str = "official"
    variant: str = "official"
    backend: str = "auto"

    def __post_init__(self) -> None:
        self._check_ranks()
        if not is_number(self.alpha) or not 0 < self.alpha <= LARGEST_ALPHA:
            raise ValueError(f"alpha: got {shown(self.alpha)}, expected a positive number of at most {LARGEST_ALPHA:g}")
        if not is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: got {shown(self.dropout)}, expected a probability in [0, 1)")
        object.__setattr__(self, "targets", self._ordered_targets())
        if self.first_layer is not None:
            check_whole("first_layer", self.first_layer, 0, ", or None")
        check_whole("last_layers", self.last_layers, 1)
        one_of("init", self.init, INITS)
        one_of("variant", self.variant, VARIANTS)
        one_of("backend", self.backend, ("auto", "reference", "torch", "triton"))
        if self.variant == "no-specific" and self.init == "identity":
            raise ValueError(
                "init: got 'identity' with variant='no-specific', expected 'official': the common term alone has no "
                "start that is both the pretrained model and trainable"
            )

    def _check_ranks(self) -> None:
        ranks = self.rank if isinstance(self.rank, Mapping) else {"": self.rank}
        if isinstance(self.rank, Mapping):
            if not self.rank or not all(isinstance(modality, str) and modality for modality in self.rank):
                raise ValueError(f"rank: got keys {shown(list(self.rank))}, expected names of modalities")
            object.__setattr__(self, "rank", {modality: self.rank[modality] for modality in sorted(self.rank)})
        for modality, rank in ranks.items():
            check_whole(f"rank[{shown(modality)}]" if modality else "rank", rank, 1)
        if self.common_rank is None:
            if len(set(ranks.values())) > 1:
                raise ValueError(
                    f"common_rank: got None with rank={shown(dict(ranks))}, expected an int: the towers share one"
                )
        else:
            check_whole("common_rank", self.common_rank, 1, ", or None")

    def _ordered_targets(self) -> tuple[str, ...]:
        choices = ", ".join(map(repr, TARGETS))
        if isinstance(self.targets, str) or not isinstance(self.targets, Sequence) or not self.targets:
            raise ValueError(f"targets: got {shown(self.targets)}, expected a non-empty sequence out of {choices}")
        for target in self.targets:
            if target not in TARGETS:
                raise ValueError(
                    f"targets: got unknown target {shown(target)}{target_hint(target)}, expected some of {choices}"
                )
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets: got {shown(self.targets)}, expected each target once")
        return tuple(target for target in TARGETS if target in self.targets)

    def specific_rank(self, modality: str) -> int:
        """r_s of one modality; `check_modalities` says that it is there."""
        return self.rank if isinstance(self.rank, int) else self.rank[modality]

    def check_modalities(self, modalities: Iterable[str]) -> None:
        """Raise ValueError that names what a model's towers and the keys of `rank` do not share."""
        if isinstance(self.rank, int):
            return
        expected = [*modalities]
        unknown = [shown(modality) for modality in self.rank if modality not in expected]
        missing = [repr(modality) for modality in expected if modality not in self.rank]
        found = [f"{what} {', '.join(names)}" for what, names in (("unknown", unknown), ("missing", missing)) if names]
        if found:
            towers = ", ".join(map(repr, expected))
            raise ValueError(
                f"rank: got keys {shown([*self.rank])} ({'; '.join(found)}), expected the towers, {towers}"
            )

    @property
    def shared_rank(self) -> int:
        """r_c, the rank of the common factors."""
        if self.common_rank is not None:
            return self.common_rank
        return self.rank if isinstance(self.rank, int) else next(iter(self.rank.values()))

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return {**asdict(self), "targets": list(self.targets)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> MoraConfig:
        """The inverse of `to_dict`; an unknown or wrong field raises ValueError that begins with its name."""
        if not isinstance(fields, Mapping):
            raise ValueError(
                f"fields: got {shown(fields)}, expected a mapping of {', '.join(cls.__dataclass_fields__)}"
            )
        check_fields(fields)
        return cls(**fields)


# What other libraries call a field, and what it is here.
OTHER_NAMES = {
    "r": "rank",
    "lora_rank": "rank",
    "lora_alpha": "alpha, which is not divided by the rank: alpha = lora_alpha / r",
    "scaling": "alpha",
    "lora_dropout": "dropout",
    "target_modules": 'targets, out of "q", "k", "v", "out"',
    "layers_to_transform": "last_layers or first_layer",
    "layers": "last_layers or first_layer",
    "init_lora_weights": "init",
}
OTHER_TARGETS = {
    **{name: target for target in "qkv" for name in (f"{target}_proj", f"{target}_lin", f"to_{target}", f"w{target}")},
    **dict.fromkeys(("out_proj", "o_proj", "o", "to_out", "proj", "c_proj"), "out"),
    "query": "q",
    "key": "k",
    "value": "v",
}
PACKED_TARGETS = ("in_proj", "in_proj_weight", "qkv", "attn", "self_attn")


def check_fields(fields: Iterable[str], error: type[Exception] = ValueError) -> None:
    """Raise `error` that names the first unknown field, what it is called here, and every field there is."""
    for name in fields:
        if name not in MoraConfig.__dataclass_fields__:
            hint = f" ({name} is {OTHER_NAMES[name]} here)" if name in OTHER_NAMES else ""
            known = ", ".join(MoraConfig.__dataclass_fields__)
            raise error(f"{label(name)}: got an unknown field{hint}, expected some of {known}")


def target_hint(target: object) -> str:
    """What another library's name of a projection is called here, in parentheses; "" for a name that nobody uses."""
    if not isinstance(target, str):
        return ""
    last = target.rpartition(".")[2]
    if last in PACKED_TARGETS:
        return " (its parts are 'q', 'k', 'v' here)"
    return f" ({target} is {OTHER_TARGETS[last]!r} here)" if last in OTHER_TARGETS else ""


# OpenAI CLIP ViT-B/16, blocks 10 and 11 of 12 in both towers (METHOD section 3 of the paper's notes; docs/design.md).
PRESETS: dict[str, MoraConfig] = {
    "mmimdb": MoraConfig(rank=4, alpha=0.001, targets=("q", "k")),
    "food101": MoraConfig(rank=4, alpha=0.01, targets=("q", "v")),
    "hateful_memes": MoraConfig(rank=8, alpha=0.1, targets=("k", "v")),
}
