"""Which adapted projections stand on weights that merging cannot write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mora.bases.base import Base
from mora.system.messages import listed


def check_holding(projections: Mapping[str, Any], dequantise: bool) -> dict[str, Base]:
    """The bases that cannot hold other values, by projection; ValueError where there are some and may not be any."""
    held = {name: one.base for name, one in projections.items() if one.base is not None and not one.base.written}
    if held and not dequantise:
        kinds = ", ".join(sorted({base.label for base in held.values()}))
        size = sum(base.outline.numel() * base.dtype.itemsize for base in held.values()) / 2**20
        raise ValueError(
            f"merge: the weights of {listed(held, 4)} are {kinds}, which cannot hold W_eff as it is; expected "
            f"dequantise=True, which makes each of them a plain nn.Linear ({size:.3g} MiB in all), or adapters that "
            "stay beside them"
        )
    return held
