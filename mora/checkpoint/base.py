"""Which base weights adapters belong to: a few numbers per adapted projection that rounding and moves leave alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mora.bases.sharded import whole
from mora.config import MoraConfig
from mora.system.checks import is_whole
from mora.system.messages import listed
from mora.towers.slots import Slot

SKETCHES = 16  # products per projection: their spread around |difference| is about a sixth
# Relative Frobenius distance. Rounding to bfloat16 moves a weight by 1.7e-3 of its norm, a fine-tuned or another
# checkpoint by 1e-2 and more: what differs less than half precision does is the same base.
SAME = 5e-3

Fingerprint = dict[str, list[float]]


def fingerprint(slots: Iterable[Slot], config: MoraConfig) -> Fingerprint:
    """Return, by projection that `config` adapts, |W| and 16 products r^T W c with fixed signs r and c.

    The products differ by about |W - W'| between two weights (Johnson and Lindenstrauss), whatever their dtype, device
    or library. Sharded weights are gathered, so every process
    has to ask. Raises ValueError where weights are not there (meta).
    """
    found = {}
    for slot in slots:
        for target in config.targets_of(slot.modality):
            weight, name = whole(slot.weight(target).detach()), slot.label(target)
            if weight.is_meta:
                raise ValueError(f"model: {slot.path} is on the meta device, expected weights: load them first")
            found[name] = sketch(weight)
    return found


def held(slots: Iterable[Slot], config: MoraConfig) -> dict[str, str]:
    """What holds the weights that are not plain, by projection: "bitsandbytes nf4"."""
    found = {}
    for slot in slots:
        for target in config.targets_of(slot.modality):
            if (base := slot.base(target)) is not None:
                found[slot.label(target)] = base.label
    return found


def sketch(weight: Tensor) -> list[float]:
    """|W| and the products of a weight [out, in], to six digits."""
    weight = weight.to("cpu", torch.float64)
    rows, columns = signs(weight.shape[0], 0), signs(weight.shape[1], 1)
    products = ((rows @ weight) * columns).sum(dim=1)
    return [float(f"{value:.6g}") for value in (torch.linalg.vector_norm(weight), *products.tolist())]


@lru_cache
def signs(size: int, which: int) -> Tensor:
    """Fixed signs [16, size]: bits of an integer hash, so that no random state and no version of torch matters."""
    value = torch.arange(SKETCHES * size, dtype=torch.int64) * 2 + which + 1
    for factor in (0x7FEB352D, 0x846CA68B):  # lowbias32
        value = ((value ^ (value >> 16)) * factor) & 0xFFFFFFFF
    value ^= value >> 15
    return (1 - 2 * (value >> 7 & 1)).to(torch.float64).view(SKETCHES, size)


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, float]:
    """The projections whose weights are not the same, with the relative distance: infinite for a malformed entry."""
    found = {name: distance(ours[name], theirs.get(name)) for name in ours}
    return {name: far for name, far in found.items() if not far <= SAME}


def distance(ours: list[float], theirs: Any) -> float:
    """Relative Frobenius distance of two weights, estimated from their sketches."""
    if not isinstance(theirs, list) or len(theirs) != 1 + SKETCHES or not all(is_number(value) for value in theirs):
        return math.inf
    if ours[0] == theirs[0] == 0:
        return 0.0
    squares = sum((a - b) * (a - b) for a, b in zip(ours[1:], theirs[1:], strict=True)) / SKETCHES
    return math.sqrt(squares) / max(ours[0], theirs[0])


def is_number(value: object) -> bool:
    """Whether a value of a file is a number that a float holds."""
    return isinstance(value, float) or (is_whole(value) and -(2**53) < value < 2**53)  # type: ignore[operator]


def kinds_of(found: Any, names: Iterable[str]) -> str:
    """What holds the weights of some projections, in words."""
    kinds = found if isinstance(found, dict) else {}
    return ", ".join(sorted({str(kinds.get(name, "plain")) for name in names}))


def check_base(ours: Fingerprint, theirs: Any, source: str, held: tuple[Any, Any] = (None, None)) -> None:
    """Raise ValueError that names the projections whose weights are not those that `source` was trained on.

    Args:
        ours, theirs: fingerprints; the second is a file's.
        source: that file, for errors.
        held: what `held` says of either.
    """
    if far := differing(ours, theirs if isinstance(theirs, dict) else {}):
        shown = listed(f"{name} (relative difference {value:.2g})" for name, value in far.items())
        here, there = (kinds_of(one, far) for one in held)
        apart = "" if here == there else f" (trained on {there} weights, here they are {here})"
        raise ValueError(
            f"base: {source} was trained on other weights than this model's: {shown}{apart}; load the checkpoint it "
            "was trained on first, or insist with base='any'"
        )
