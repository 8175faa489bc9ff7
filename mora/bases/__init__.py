"""Where the frozen W of a projection comes from, for linears that do not hold it as a plain parameter of their own."""

from mora.bases.base import Base
from mora.bases.of import base_of, outline_of, weight_of

__all__ = ["Base", "base_of", "outline_of", "weight_of"]
