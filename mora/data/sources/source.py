"""What `mora.data.open` asks of a kind of data set, and what it tells it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mora.data.dataset import Dataset


@dataclass(frozen=True)
class Options:
    """The arguments of `open_dataset` that a source may need; each reads those that concern it."""

    name: str | None = None
    on_broken: str = "raise"
    size: int = 64
    classes: Sequence[str] | None = None
    multi_label: bool | None = None
    seed: int = 0
    extra_columns: bool = False
    labelled: bool = True


class Source(NamedTuple):
    """One kind of data set, a row of `mora.data.open.SOURCES`.

    Attributes:
        form: what a user writes for it, for messages.
        matches: whether a given source, a name or a path, is of this kind; opens nothing.
        splits: the splits it has rows of, out of `SPLITS` and in their order.
        open: one split, `"train"`, `"validation"`, `"test"` or `"all"`; ValueError where it has none.
        takes_name: whether `Options.name` means something to it.
    """

    form: str
    matches: Callable[[str], bool]
    splits: Callable[[str, Options], tuple[str, ...]]
    open: Callable[[str, str, Options], Dataset]
    takes_name: bool = False
