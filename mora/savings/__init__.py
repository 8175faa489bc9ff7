"""What need not be computed, because it cannot change: see docs/savings.md."""

from mora.savings.cache import PrefixCache
from mora.savings.determinism import why_random
from mora.savings.encoder import Encoder, refusal
from mora.savings.fingerprint import sample_parts
from mora.savings.options import Hidden, Savings

__all__ = ["Encoder", "Hidden", "PrefixCache", "Savings", "refusal", "sample_parts", "why_random"]
