"""Which modality each row of a data set lacks: the missing table of the evaluation protocol."""

from __future__ import annotations

import random

import torch
from torch import Tensor

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
        seed: of a generator of its own; the global one is neither read nor advanced.
        both_ratio: share of the drawn rows that lose the image under ``"both"``, in [0, 1].

    Returns:
        float32 [n]: 0 complete, 1 text missing, 2 image missing.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """
    if n < 0:
        raise ValueError(f"n: got {n}, expected a number of rows of at least 0")
    for name, value in (("rate", rate), ("both_ratio", both_ratio)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name}: got {value}, expected a share between 0 and 1")
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(map(repr, KINDS))}")
    generator = random.Random(seed)
    missing = generator.sample(range(n), int(n * rate))
    table = torch.zeros(n, dtype=torch.float32)
    table[missing] = IMAGE_MISSING if kind == "image" else TEXT_MISSING
    if kind == "both":
        table[generator.sample(missing, int(len(missing) * both_ratio))] = IMAGE_MISSING
    return table


def combine_missing(available: Tensor, table: Tensor) -> Tensor:
    """What each row lacks under its natural absence `available` and a simulated `table`, int8 [N]."""
    natural = available.to(torch.int8)
    return torch.where(natural != COMPLETE, natural, table.to(torch.int8))
