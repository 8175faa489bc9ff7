"""Presence patterns: which modalities a row has. All of them, one only, or any others but none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

MOST = 8  # modalities of which every pattern has values of its own: 2^M - 1 of them
COMPLETE = "complete"


def patterns_of(modalities: Iterable[str]) -> list[tuple[str, ...]]:
    """Every non-empty set of modalities; the place of one is the sum of 2^m over its modalities m, minus 1.

    Raises ValueError for more modalities than `MOST`.
    """
    names = [*modalities]
    if len(names) > MOST:
        raise ValueError(
            f"head: got {len(names)} modalities, expected at most {MOST}: each pattern has values of its own"
        )
    return [tuple(name for m, name in enumerate(names) if code >> m & 1) for code in range(1, 1 << len(names))]


def pattern_index(present: Tensor) -> Tensor:
    """The place of each row's pattern in `patterns_of`, int64 [B], of bool [B, M]; no row may lack all."""
    weights = 1 << torch.arange(present.shape[1], device=present.device)
    return (present * weights).sum(dim=1) - 1


def pattern_name(there: Sequence[str], modalities: Sequence[str]) -> str:
    """ "complete", "image only", "audio, image only"."""
    return COMPLETE if len(there) == len(modalities) > 1 else f"{', '.join(there)} only"


def scores_by_pattern(
    metric: Callable[[], Any],
    logits: Tensor,
    labels: Tensor,
    present: Mapping[str, Tensor],
    groups: Tensor | None = None,
) -> dict[str, dict[str, float]]:
    """Figures of the rows of each pattern, complete rows first: {"image only": {"rows": 12, "accuracy": 0.5}, ...}.

    Patterns that no row has are left out; where a figure is not defined of the rows there are (AUROC of one class),
    their number stands alone.

    Args:
        metric: makes an empty `mora.metrics.Metric`.
        logits, labels, groups: of all rows, as it takes them.
        present: bool [N] by modality.
    """
    modalities = [*present]
    there = torch.stack([*present.values()], dim=1)
    found: dict[str, dict[str, float]] = {}
    for one in there.unique(dim=0).flip(0) if len(there) else ():
        rows = (there == one).all(dim=1).nonzero().flatten()
        name = pattern_name([m for m, has in zip(modalities, one.tolist(), strict=True) if has], modalities)
        counted = metric()
        counted.update(logits[rows], labels[rows], None if groups is None else groups[rows])
        try:
            found[name] = {"rows": len(rows), **counted.compute()}
        except ValueError:  # not defined of these rows
            found[name] = {"rows": len(rows)}
    return found


def names_in(scores: Iterable[Mapping[str, Any]]) -> list[str]:
    """The patterns that occur in several results, complete rows first, then in the order in which they come."""
    names = list(dict.fromkeys(chain.from_iterable(scores)))
    return sorted(names, key=lambda name: name != COMPLETE)
