"""What the kernels run at: every case of tests/kernels, and the ranks and widths at which padding changes."""

from mora_kernels.testing import make_factors
from tests.kernels.cases import CASES as SHARED

CASES = {
    **SHARED,
    "rank-1": dict(size=48, other_sizes=(33,), rank=1, alpha=0.05),
    "rank-3": dict(size=80, other_sizes=(48,), rank=3, alpha=0.02),
    "rank-16": dict(size=64, other_sizes=(48,), rank=16, alpha=0.01),
    "rank-33": dict(size=72, other_sizes=(48,), rank=33, common_rank=2, alpha=0.01, rows=5),
    "hateful_memes-start": dict(size=64, other_sizes=(96,), rank=8, alpha=0.1, trained=False),
}


def make(case: str, **overrides):
    """Return the float64 inputs of a named case."""
    return make_factors(**{**CASES[case], **overrides})
