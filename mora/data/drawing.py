"""Missing tables of any modalities, drawn from a seed: exact counts, and no row that loses everything."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from mora.data.missing import KINDS, check_seed, missing_table
from mora.data.policies import ANY, BOTH, EACH, Missing, impossible
from mora.data.presence import PAIR, Presence


def draw_presence(rows: int, modalities: tuple[str, ...], missing: Missing, seed: int) -> Presence:
    """What a table leaves of `rows` complete rows; the same for the same arguments, on every machine.

    "text", "audio+text": `int(rows * rate)` rows, drawn without replacement, lose these. "both": so many rows lose
    exactly one, row i of the draw modality i mod M, so that the numbers differ by one at most. "each": every modality
    is drawn by itself; then a row that lost all gets back one, drawn, in exchange for that of a drawn row that keeps
    another, so that the counts stay `int(rows * rate)`. "any": every row keeps one, drawn evenly, and
    `int(rows * M * rate)` of all other inputs are drawn.

    Image and text alone, under the published kinds, are drawn by `missing_table`, as published.

    Raises ValueError for a modality that the data has not, and rates that no table has: a row would lose all.
    """
    missing.refuse_unknown(modalities)
    if set(modalities) == set(PAIR) and missing.kind in KINDS:
        codes = missing_table(rows, missing.rate, missing.kind, seed, missing.both_ratio)
        return Presence.of_codes(codes).over(modalities)
    check_seed("seed", seed)
    if missing.both_ratio != 0.5:
        raise ValueError(
            f"both_ratio: got {missing.both_ratio:g} with {', '.join(modalities)}, expected it with image and text "
            "alone; rates by modality say more, such as audio:0.7,image:0.3"
        )
    draw, count = random.Random(seed), len(modalities)
    there = torch.ones(rows, count, dtype=torch.bool)
    if missing.kind == BOTH:
        if count < 2 and int(rows * missing.rate):
            raise impossible(missing, rows, int(rows * missing.rate), modalities)
        for place, row in enumerate(draw.sample(range(rows), int(rows * missing.rate))):
            there[row, place % count] = False
    elif missing.kind == ANY:
        _take_any(there, missing, draw, modalities)
    elif missing.kind == EACH:
        _take_each(there, missing, draw, modalities)
    else:
        lost = [modalities.index(name) for name in missing.modalities]
        if len(lost) == count and int(rows * missing.rate):
            raise impossible(missing, rows, count * int(rows * missing.rate), modalities)
        drawn = torch.tensor(draw.sample(range(rows), int(rows * missing.rate)), dtype=torch.int64)
        there[drawn[:, None], torch.tensor(lost)] = False
    return Presence(modalities, there)


def _take_any(there: Tensor, missing: Missing, draw: random.Random, modalities: tuple[str, ...]) -> None:
    rows, count = there.shape
    taken, others = int(rows * count * missing.rate), count - 1
    if taken > rows * others:
        raise impossible(missing, rows, taken, modalities)
    kept = [draw.randrange(count) for _ in range(rows)]
    for cell in draw.sample(range(rows * others), taken):
        row, place = divmod(cell, others)
        there[row, place + (place >= kept[row])] = False


def _take_each(there: Tensor, missing: Missing, draw: random.Random, modalities: tuple[str, ...]) -> None:
    rows, count = there.shape
    numbers = {modalities.index(name): int(rows * rate) for name, rate in missing.rates}
    if sum(numbers.values()) > rows * (count - 1):
        raise impossible(missing, rows, sum(numbers.values()), modalities)
    for column in sorted(numbers):
        there[draw.sample(range(rows), numbers[column]), column] = False
    left = there.sum(dim=1).tolist()
    rich = [row for row in range(rows) if left[row] > 1]
    for row in [row for row in range(rows) if not left[row]]:
        place = draw.randrange(len(rich))
        giver = rich[place]
        column = draw.choice([m for m in range(count) if there[giver, m]])
        there[row, column], there[giver, column] = True, False
        left[giver] -= 1
        if left[giver] == 1:
            rich[place] = rich[-1]
            rich.pop()
