"""What a missing table takes away: kinds and rates, as they are written, for all splits or by split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mora.data.dataset import SPLITS
from mora.data.missing import KINDS, check_share
from mora.data.modalities import known
from mora.data.published import split_name
from mora.system.messages import listed

Specification = TypeVar("Specification")
FORM = "KIND:RATE or KIND:RATE:SHARE, such as both:0.7, text:0.5, both:0.7:0.25, audio:0.7,image:0.3, any:0.6, or none"
BOTH, EITHER, ANY, EACH = "both", "either", "any", "each"


@dataclass(frozen=True)
class Missing:
    """What to take away; a rate counts what is missing. The default takes nothing.

    Attributes:
        kind: a modality, or several as "audio+text", which the drawn rows lose; "both", of which they lose exactly one,
            as many of them each; "any", under which a row may keep any of its modalities but none; "each": `rates`.
        rate: share of the rows that lose something; under "any", of all inputs of all rows; under "each" the highest.
        both_ratio: under "both", of image and text alone: the share of the drawn rows that lose the image.
        rates: under "each", the share of the rows that lose each modality: of those named, whatever else they lose.
    """

    kind: str = BOTH
    rate: float = 0.0
    both_ratio: float = 0.5
    rates: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("rate", self.rate), ("both_ratio", self.both_ratio), *self.rates):
            check_share(name, value)
        names = [name for name, _ in self.rates] if self.kind == EACH else self.kind.split("+")
        if not names or len(set(names)) < len(names) or not all(name.isidentifier() for name in names):
            raise ValueError(f"kind: got {self.kind!r}, expected {kinds_of(known())}")

    @classmethod
    def parse(cls, text: str, strict: bool = True) -> Missing:
        """`"both:0.7"`, `"both:0.7:0.25"`, `"audio+text:0.5"`, `"audio:0.7,image:0.3"`, `"any:0.6"` or `"none"`.

        "either" is another word for "both". Raises ValueError for anything else, and, unless not `strict`, for a
        modality that nobody registered.
        """
        if text == "none":
            return cls()
        read = [_read(part.strip(), text) for part in text.split(",")]
        if len(read) == 1:
            found = cls(*read[0])
        else:
            if any(len(one) > 2 for one in read):
                raise ValueError(f"missing: got {text!r}, expected {FORM}")
            rates = tuple((kind, rate) for kind, rate, *_ in read)
            found = cls(EACH, max(rate for _, rate in rates), rates=rates)
        if strict:
            found.refuse_unknown(known())
        return found

    def refuse_unknown(self, modalities: tuple[str, ...]) -> None:
        """ValueError for a modality that is none of these."""
        words = () if self.kind in (BOTH, ANY) else self.modalities
        if unknown := [name for name in words if name not in modalities]:
            raise ValueError(f"kind: got {unknown[0]!r}, expected {kinds_of(modalities)}")

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those that it names; of "both" and "any" none."""
        if self.kind == EACH:
            return tuple(name for name, _ in self.rates)
        return () if self.kind in (BOTH, ANY) else tuple(self.kind.split("+"))

    @property
    def label(self) -> str:
        """What is taken away, in one word, the rate aside where there is one."""
        return str(self) if self.kind == EACH else self.kind

    def __str__(self) -> str:
        if self.rate == 0:
            return "none"
        if self.kind == EACH:
            return ",".join(f"{name}:{rate:g}" for name, rate in self.rates)
        share = f":{self.both_ratio:g}" if self.kind == BOTH and self.both_ratio != 0.5 else ""
        return f"{self.kind}:{self.rate:g}{share}"


def _read(part: str, whole: str) -> tuple[Any, ...]:
    """(kind, rate) or (kind, rate, share) of one part; ValueError for another form."""
    kind, *numbers = part.split(":")
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        values = []
    if not 1 <= len(values) <= 2:
        raise ValueError(f"missing: got {whole!r}, expected {FORM}")
    return (BOTH if kind == EITHER else kind, *values)


def kinds_of(modalities: tuple[str, ...]) -> str:
    """The kinds that data of some modalities has, in words."""
    others = [name for name in modalities if name not in KINDS]
    first = [kind for kind in KINDS if kind == BOTH or kind in modalities]
    return f"one of {', '.join(map(repr, [*first, *others, ANY]))}, or several modalities as 'A+B'"


def parse_missing(given: object) -> dict[str, Missing]:
    """What each split lacks: `"both:0.7"` for all three, or as `by_split` takes it, others complete."""
    return by_split(given, Missing.parse)


def by_split(given: object, read: Callable[[Any], Specification]) -> dict[str, Specification]:
    """One specification for every split, each as `read` reads it.

    Args:
        given: one for all splits; `"train=both:0.7,test=image:0.9"`, where the others are `"none"`, and a part without
            a split belongs to the one before it, `"train=audio:0.7,image:0.3,test=any:0.5"`; or a mapping. A split may
            be called as files call it, `"dev"`.
        read: raises ValueError for a specification of another form.

    Raises:
        ValueError: an unknown split, or one that comes twice.
    """
    if isinstance(given, str):
        if "=" not in given or Path(given).is_file():
            return dict.fromkeys(SPLITS, read(given.strip()))
        pairs: list[tuple[str, str]] = []
        for part in given.split(","):
            split, named, specification = part.partition("=")
            if not named and pairs:
                pairs[-1] = (pairs[-1][0], f"{pairs[-1][1]},{part.strip()}")
            else:
                pairs.append((split.strip(), specification.strip()))
        if len(dict(pairs)) < len(pairs):
            raise ValueError(f"missing: got {given!r}, expected each split once")
        given = dict(pairs)
    if not isinstance(given, Mapping):
        raise ValueError(f"missing: got {given!r}, expected 'both:0.7', 'train=both:0.7,test=image:0.5' or a mapping")
    found: dict[str, object] = {}
    for word, one in given.items():
        name = split_name(str(word))
        if name is None or name in found:
            raise ValueError(f"missing: got {word!r}, expected each of {', '.join(map(repr, SPLITS))} at most once")
        found[name] = one
    return {split: read(found.get(split, "none")) for split in SPLITS}


def impossible(missing: Missing, rows: int, taken: int, modalities: tuple[str, ...]) -> ValueError:
    """The error for rates that would leave a row with nothing."""
    most = (len(modalities) - 1) * rows
    return ValueError(
        f"missing: got {missing} of {rows:,} rows of {listed(modalities)}, which takes {taken:,} inputs, expected at "
        f"most {most:,}: every row keeps one, so rates by modality sum to at most {len(modalities) - 1}, and 'any' is "
        f"at most {(len(modalities) - 1) / len(modalities):.4g}"
    )
