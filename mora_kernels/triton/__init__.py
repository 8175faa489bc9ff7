"""The `triton` backend: one launch builds W_eff of every projection, one takes every gradient back to the factors.

Importing this package imports no Triton; the first operator that runs does.
"""

from mora_kernels.triton.functional import effective_weight, gram, mora_linear

__all__ = ["effective_weight", "gram", "mora_linear"]
