"""Which modality each row of a data set lacks: the missing table of the evaluation protocol."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from mora.system.checks import is_whole

COMPLETE, TEXT_MISSING, IMAGE_MISSING = 0, 1, 2
KINDS = ("text", "image", "both")


def missing_table(n: int, rate: float, kind: str, seed: int, both_ratio: float = 0.5) -> Tensor:
    """Draw ``int(n * rate)`` of ``n`` rows without replacement and take one modality from each.

    A rate counts what is missing: ``both`` at 0.7 leaves 35 % of the rows without text, 35 %
    without image and 30 % complete. No row ever loses both modalities.

    Args:
        n: number of rows, at least 0.
        rate: share of rows that lack a modality, in [0, 1].
        kind: ``"text"`` takes the text of the drawn rows, ``"image"`` the image; ``"both"`` takes the
            text, then the image instead of the text from ``both_ratio`` of them, at random.
        seed: from 0 to 2**63 - 1, of a generator of its own; the global one is neither read nor advanced.
        both_ratio: share of the drawn rows that lose the image under ``"both"``, in [0, 1].

    Returns:
        float32 [n]: 0 complete, 1 text missing, 2 image missing.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """
    if n < 0:
        raise ValueError(f"n: got {n}, expected a number of rows of at least 0")
    for name, value in (("rate", rate), ("both_ratio", both_ratio)):
        check_share(name, value)
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(map(repr, KINDS))}")
    check_seed("seed", seed)
    generator = random.Random(seed)
    missing = generator.sample(range(n), int(n * rate))
    table = torch.zeros(n, dtype=torch.float32)
    table[missing] = IMAGE_MISSING if kind == "image" else TEXT_MISSING
    if kind == "both":
        table[generator.sample(missing, int(len(missing) * both_ratio))] = IMAGE_MISSING
    return table


def check_share(name: str, value: float) -> None:
    """ValueError unless `value` is between 0 and 1."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}: got {value}, expected a share between 0 and 1")


def check_seed(name: str, seed: object) -> None:
    """ValueError unless `seed` is a whole number from 0 to 2**63 - 1: Python's generator takes -1 for 1."""
    if not is_whole(seed) or not 0 <= seed < 1 << 63:  # type: ignore[operator]
        shown = repr(seed) if not is_whole(seed) or abs(seed) < 1 << 100 else "a longer number"  # type: ignore[arg-type]
        raise ValueError(f"{name}: got {shown}, expected a whole number from 0 to 2**63 - 1")


def combine_missing(available: Tensor, table: Tensor) -> Tensor:
    """What each sample lacks when a missing table meets natural absence: int8 [N]; no sample ever lacks both.

    What a sample lacks by itself stays so, whatever the table says of it: taking its other modality would leave
    nothing. So on samples that are complete by themselves the table decides alone.

    Args:
        available: natural absence, [N], from `Dataset.available`.
        table: simulated absence, [N], one value per sample (see `per_sample`).

    Raises:
        ValueError: the lengths differ, or a value is none of 0 (complete), 1 (text missing), 2 (image missing).
    """
    if available.ndim != 1 or available.shape != table.shape:
        raise ValueError(f"table: got shape {list(table.shape)}, expected {list(available.shape)} as available has")
    for name, values in (("available", available), ("table", table)):
        refuse_other_values(name, values)
    natural = available.to(torch.int8)
    return torch.where(natural != COMPLETE, natural, table.to(natural.device, torch.int8))


def refuse_other_values(name: str, values: Tensor) -> None:
    """ValueError unless every value is 0, 1 or 2."""
    wrong = ~torch.isin(values, torch.tensor([COMPLETE, TEXT_MISSING, IMAGE_MISSING], device=values.device))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0])
        expected = "0 (complete), 1 (text missing) or 2 (image missing)"
        raise ValueError(f"{name}: got {values[row].item()} in row {row + 1}, expected {expected}")
