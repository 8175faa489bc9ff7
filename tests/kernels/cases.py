"""The settings every parity test runs at: published, trained-like, odd sizes and ranks, clamps, several modalities."""

from mora_kernels.testing import make_factors

CASES = {
    "food101-start": dict(size=64, other_sizes=(48,), rank=4, alpha=0.01, trained=False),
    "food101": dict(size=64, other_sizes=(48,), rank=4, alpha=0.01),
    "mmimdb": dict(size=48, other_sizes=(64,), rank=4, alpha=0.001),
    "hateful_memes": dict(size=64, other_sizes=(96,), rank=8, alpha=0.1),
    "zero-columns": dict(size=64, other_sizes=(48,), rank=4, alpha=0.01, zero_columns=3),
    "zero-columns-start": dict(size=32, other_sizes=(48,), rank=4, alpha=0.01, zero_columns=3, trained=False),
    "three-modalities": dict(size=64, other_sizes=(48, 33), rank=4, alpha=0.05),
    "mean-of-two": dict(size=64, other_sizes=(48, 33), rank=4, alpha=0.05, gram_scale=0.5),
    "no-gram": dict(size=64, other_sizes=(), rank=4, alpha=0.05),
    "odd": dict(size=97, other_sizes=(31,), rank=3, common_rank=5, alpha=0.02, rows=3),
    "tiny": dict(size=7, other_sizes=(5,), rank=1, alpha=0.05, rows=1),
    "rank-17": dict(size=65, other_sizes=(40,), rank=17, alpha=0.02),
    "rank-64": dict(size=70, other_sizes=(34,), rank=64, alpha=0.01, rows=9),
}


def make(case: str, **overrides):
    """Return the float64 inputs of a named case."""
    return make_factors(**{**CASES[case], **overrides})
