"""Embeddings of the rows that are there alone, where something else than a substitute stands for the others."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from mora.savings.options import Hidden, chosen


def only_there(
    run: Callable[[Tensor | Hidden], Tensor],
    given: Tensor | Hidden | None,
    present: Tensor,
    substitute: Tensor,
    training: bool,
    alone: Tensor,
) -> Tensor:
    """Embeddings [B, e] of the rows that are there; the others are `alone` [1, e], and pass no block.

    In training every batch gives all that is trained a gradient, if of zero: processes average them.

    Args:
        run: the tower, inputs or rows past the frozen blocks to embeddings.
        given, present: rows, and which are there, bool [B].
        substitute: one row of inputs.
        training: whether gradients are wanted of all.
        alone: in the place of a missing embedding.
    """
    if given is None or not bool(present.any()):
        rows = alone.expand(len(present), -1)
        return rows + 0 * run(substitute[None]) if training else rows
    if not training and bool(present.all()):
        return run(given)
    embedded = run(chosen(given, present))
    rows = alone.to(embedded.dtype).repeat(len(present), 1)
    return rows.index_copy(0, present.nonzero().flatten(), embedded)
