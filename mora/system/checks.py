"""Checks of single values whose errors name the argument, what came and what was expected."""

from __future__ import annotations

from collections.abc import Sequence

from mora.system.messages import shown

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


def is_number(value: object) -> bool:
    """Whether `value` is an int or a float and not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
