"""How far up the right answer stands: ranks of matches among all candidates, and recall made of them.

A query is an item of one modality, a candidate one of another; they match where they are of one picture. The rank of a
query is 1 + the number of candidates that do not match and are at least as near (by cosine) as the nearest that does:
ties count against the model, so that embeddings that are all the same find nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor

from mora.metrics import RECALL

DEPTHS = (1, 5, 10)
TIE = 1e-6  # cosines nearer than this are a tie: float32 embeddings of equal inputs differ by less
CHUNK = 1 << 24  # cosines at a time
PICTURED = "image"  # the modality of which several samples may show one


@dataclass(frozen=True)
class Direction:
    """Retrieval from one modality to another.

    Attributes:
        query, target: modalities.
        queries: number of items that have a match to be found.
        candidates: number of items among which it is looked for.
        recall: by depth k, the share of queries of which a match is among the first k.
        median_rank: of the queries, from 1; the mean of the two in the middle where their number is even.
    """

    query: str
    target: str
    queries: int
    candidates: int
    recall: dict[int, float]
    median_rank: float

    @property
    def name(self) -> str:
        """ "image_to_text"."""
        return f"{self.query}_to_{self.target}"


def retrieval(
    embedded: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
    pictures: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> list[Direction]:
    """Every direction between two modalities, on what is present.

    Candidates are all items of the other modality, those of rows that lack the query's too; queries are the items that
    have a match among them. Of samples that show one picture, the picture counts once and is found by any of its texts;
    each of the texts is a query of its own.

    Args:
        embedded: [N, e] by modality, of any length; rows that are not there are not looked at.
        present: bool [N] by modality.
        pictures: int64 [N], the picture that each sample shows, where several show one; samples of one number match.
        device: where ranks are counted.

    Raises ValueError when no sample has two modalities, and for embeddings that are not finite.
    """
    count = len(next(iter(present.values())))
    pictures = torch.arange(count) if pictures is None else pictures
    items: dict[str, tuple[Tensor, Tensor]] = {}
    for modality, rows in embedded.items():
        index = present[modality].nonzero().flatten()
        if modality == PICTURED:
            index = index[first_of_each(pictures[index])]
        if not bool(rows[index].isfinite().all()):
            raise ValueError(f"{modality}: got embeddings with NaN or infinity, expected finite numbers")
        items[modality] = F.normalize(rows[index].double(), dim=-1).to(device), pictures[index].to(device)
    found = []
    for query, target in permutations(items, 2):
        positions = ranks(*items[query], *items[target])
        if len(positions):
            shares = {depth: float((positions <= depth).double().mean()) for depth in DEPTHS}
            median = float(positions.double().quantile(0.5))
            found.append(Direction(query, target, len(positions), len(items[target][1]), shares, median))
    if not found:
        raise ValueError(f"retrieval: got no sample that has two of {', '.join(embedded)}, expected one at least")
    return found


def ranks(queries: Tensor, query_pictures: Tensor, candidates: Tensor, candidate_pictures: Tensor) -> Tensor:
    """The rank of each query that has a match, int64 [Q'], in order, on the CPU.

    Args:
        queries: [Q, e] of length 1; `query_pictures` int64 [Q].
        candidates: [C, e] of length 1; `candidate_pictures` int64 [C].
    """
    found = [torch.zeros(0, dtype=torch.int64)]
    step = max(1, CHUNK // max(1, len(candidates)))
    for rows, own in zip(queries.split(step), query_pictures.split(step), strict=True):
        cosines, match = rows @ candidates.T, own[:, None] == candidate_pictures
        best = cosines.masked_fill(~match, -torch.inf).amax(dim=1, keepdim=True) if len(candidates) else None
        if best is not None:
            rank = 1 + (~match & (cosines >= best - TIE)).sum(dim=1)
            found.append(rank[match.any(dim=1)].cpu())
    return torch.cat(found)


def figures_of(directions: list[Direction]) -> dict[str, float]:
    """By name: recall at 1, 5 and 10 averaged over the directions, then of each, and its median rank."""
    figures = {recall(depth): sum(one.recall[depth] for one in directions) / len(directions) for depth in DEPTHS}
    for one in directions:
        figures |= {f"{one.name}_{recall(depth)}": share for depth, share in one.recall.items()}
        figures[f"{one.name}_median_rank"] = one.median_rank
    return figures


def recall(depth: int) -> str:
    """ "recall_at_1" of 1."""
    return RECALL if depth == 1 else f"recall_at_{depth}"


def first_of_each(numbers: Tensor) -> Tensor:
    """The places of the first of every number in int64 [N], in order."""
    _, inverse = numbers.unique(return_inverse=True)
    first = torch.full((int(inverse.max()) + 1 if len(inverse) else 0,), len(numbers), dtype=torch.int64)
    first.scatter_reduce_(0, inverse, torch.arange(len(numbers)), "amin")
    return first.sort().values
