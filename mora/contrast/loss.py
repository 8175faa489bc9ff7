"""Contrastive losses over rows that may lack a modality: CLIP's cross-entropy, SigLIP's sigmoid."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(
    embedded: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
    scale: Tensor | float,
    bias: Tensor | float | None = None,
    pictures: Tensor | None = None,
) -> Tensor:
    """The losses of all pairs in a batch summed, float32: divided by `count_pairs`, the mean; 0 where there is none.

    A pair is a row with two modalities x and y, for every two modalities. Without a bias (CLIP), its loss is

        -1/2 (log softmax_j s x_i y_j + log softmax_j s y_i x_j) at j = i, over the rows j that have y, or x:

    what a row has is a negative for all pairs, whether the row is one or not. With a bias (SigLIP), the losses are
    -log sigmoid(+-(s x_i y_j + b)) summed over all rows i that have x and j that have y, plus where i = j. With
    nothing missing, two modalities, and divided by the rows, both are open_clip's `ClipLoss` and `SigLipLoss`.

    Args:
        embedded: [B, e] by modality, of length 1; rows that are not there are not looked at.
        present: bool [B] by modality.
        scale: s, the factor of the cosines (not its logarithm).
        bias: b.
        pictures: int64 [B]; rows of one number show one picture and are no negatives of each other.
    """
    total = 0.0 * torch.stack([rows.float().sum() for rows in embedded.values()]).sum()
    for one, other in combinations(embedded, 2):
        total = total + pair_losses(embedded[one], embedded[other], present[one], present[other], scale, bias, pictures)
    return total


def pair_losses(
    x: Tensor,
    y: Tensor,
    has_x: Tensor,
    has_y: Tensor,
    scale: Tensor | float,
    bias: Tensor | float | None,
    pictures: Tensor | None,
) -> Tensor:
    """`contrastive_loss` of two modalities."""
    x, y = x.float().where(has_x[:, None], 0.0), y.float().where(has_y[:, None], 0.0)
    logits = scale * x @ y.T
    same = torch.eye(len(x), dtype=torch.bool, device=x.device)
    other = ~same if pictures is None else pictures[:, None] != pictures
    if bias is not None:
        signed = torch.where(same, logits + bias, -(logits + bias))
        counted = has_x[:, None] & has_y & (same | other)
        return -(F.logsigmoid(signed) * counted).sum()
    pair, target = has_x & has_y, torch.arange(len(x), device=x.device)
    # A row that is no pair keeps its own column, so that its loss is a number: it is not counted.
    found = [
        F.cross_entropy(given.masked_fill(~(same | (other & has)), -torch.inf), target, reduction="none")
        for given, has in ((logits, has_y), (logits.T, has_x))
    ]
    return 0.5 * ((found[0] + found[1]) * pair).sum()


def count_pairs(present: Mapping[str, Tensor]) -> int:
    """Rows that have two modalities, counted for every two of them; `present` bool [N] by modality."""
    return sum(int((present[one] & present[other]).sum()) for one, other in combinations(present, 2))
