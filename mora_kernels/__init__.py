"""The operations behind MoRA, with one specification and interchangeable backends.

`effective_weight` and `mora_linear` are equations (1) and (2) of docs/design.md; `gram` is the r x r matrix through
which modalities meet; `Group` builds every projection of a model at once and keeps what it built until a factor
changes. `backend="auto"` picks by device and never falls back silently.
"""

from mora_kernels.api import effective_weight, gram, mora_linear
from mora_kernels.built import Built
from mora_kernels.group import Group

__all__ = ["Built", "Group", "effective_weight", "gram", "mora_linear"]
