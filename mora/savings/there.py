"""What stands in the place of rows that are not there: another embedding, or substitutes, by what else a row has."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mora.savings.options import Hidden, chosen


def only_there(
    run: Callable[..., Tensor],
    given: Tensor | Hidden | None,
    present: Tensor,
    substitute: Tensor,
    training: bool,
    alone: Tensor,
    patterns: Tensor | None = None,
) -> Tensor:
    """Embeddings [B, e] of the rows that are there; the others are `alone` [1, e], and pass no block.

    In training every batch gives all that is trained a gradient, if of zero: processes average them.

    Args:
        run: the tower, inputs or rows past the frozen blocks to embeddings; what each has is its `patterns`.
        given, present: rows, and which are there, bool [B].
        substitute: one row of inputs.
        training: whether gradients are wanted of all.
        alone: in the place of a missing embedding.
        patterns: int64 [B], where the model has prompts.
    """
    if given is None or not bool(present.any()):
        rows = alone.expand(len(present), -1)
        if not training:
            return rows
        return rows + 0 * run(substitute[None], patterns=None if patterns is None else patterns[:1])
    if not training and bool(present.all()):
        return run(given, patterns=patterns)
    embedded = run(chosen(given, present), patterns=None if patterns is None else patterns[present])
    rows = alone.to(embedded.dtype).repeat(len(present), 1)
    return rows.index_copy(0, present.nonzero().flatten(), embedded)


def by_pattern(run: Callable[..., Tensor], substitute: Tensor, patterns: Tensor, present: Tensor) -> Tensor:
    """Embeddings [B, e] of the substitute for rows that are not there, computed once for each of their patterns."""
    kinds = patterns[~present].unique()
    place = torch.searchsorted(kinds, patterns).clamp(max=len(kinds) - 1)  # of rows that are there it says nothing
    embedded: Tensor = run(substitute.expand(len(kinds), *substitute.shape), patterns=kinds)
    return embedded[place]


def fitted(rows: Tensor, given: Tensor, padding: int | None, modality: str) -> Tensor:
    """The substitute's rows at the length of a batch of tokens, which may be shorter, or longer by padding."""
    if rows.shape == given.shape:
        return rows
    if rows.dim() == 2 and rows.shape[1] > given.shape[1] >= 2:
        return rows[:, : given.shape[1]]
    if rows.dim() == given.dim() == 2 and padding is not None:
        return F.pad(rows, (0, given.shape[1] - rows.shape[1]), value=padding)
    raise ValueError(f"{modality}: got rows of shape {tuple(given.shape[1:])}, expected {tuple(rows.shape[1:])}")
