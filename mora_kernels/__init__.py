"""The operations behind MoRA, with one specification and interchangeable backends.

`effective_weight` and `mora_linear` are equations (1) and (2) of docs/design.md; `gram` is the r x r matrix through
which modalities meet. `backend="auto"` picks by device and never falls back silently.
"""

from mora_kernels.api import effective_weight, gram, mora_linear

__all__ = ["effective_weight", "gram", "mora_linear"]
