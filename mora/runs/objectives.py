"""What a run is trained for: labels, with a head, or pairs, without one."""

from __future__ import annotations

from mora.adapters.prompts import DCP, MMP
from mora.heads import LINEAR, NONE, SUBSTITUTE, ZERO, ZERO_SHOT
from mora.metrics import KINDS, RECALL
from mora.system.checks import one_of

OBJECTIVES = CLASSIFICATION, CONTRASTIVE = "classification", "contrastive"
UNFIT = {
    "linear": "it trains nothing but a head",
    **dict.fromkeys((MMP, DCP), "its prompts depend on what else a row has, so that an image alone has no embedding"),
}


def check_objective(objective: str, method: str, head: str, missing_embedding: str, metric: str | None) -> str | None:
    """The metric of a run, `metric` itself or that of pairs; ValueError for what does not go with its objective."""
    one_of("objective", objective, OBJECTIVES)
    if objective == CLASSIFICATION:
        one_of("metric", metric, (None, *KINDS))  # type: ignore[arg-type]
        return metric
    where = f"with objective {objective!r}"
    if method in UNFIT:
        raise ValueError(f"method: got {method!r} {where}, expected another one: {UNFIT[method]}")
    if head != LINEAR or missing_embedding not in (SUBSTITUTE, ZERO):
        got = head if head != LINEAR else missing_embedding
        raise ValueError(f"head, missing_embedding: got {got!r} {where}, expected neither: there is no head")
    one_of("metric", metric, (None, RECALL))  # type: ignore[arg-type]
    return RECALL


def head_of(objective: str, method: str, head: str) -> str:
    """The head of a run: the one asked for, but for an objective without one and a method that brings its own."""
    if objective == CONTRASTIVE:
        return NONE
    return ZERO_SHOT if method == ZERO_SHOT else head


def missing_of(objective: str, missing_embedding: str) -> str:
    """What stands for a missing embedding: zero where there is no head, for nothing looks at it."""
    return ZERO if objective == CONTRASTIVE else missing_embedding
