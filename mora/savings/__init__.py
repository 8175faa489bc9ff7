"""What need not be computed, because it cannot change: see docs/savings.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mora.savings.options import Hidden, Savings

if TYPE_CHECKING:
    from mora.savings.cache import PrefixCache, refusal
    from mora.savings.determinism import why_random
    from mora.savings.fingerprint import sample_parts

__all__ = ["Hidden", "PrefixCache", "Savings", "refusal", "sample_parts", "why_random"]

PLACES = {"PrefixCache": "cache", "refusal": "cache", "why_random": "determinism", "sample_parts": "fingerprint"}


def __getattr__(name: str) -> Any:
    """Import on first use: the classifier, which the cache needs, imports the rest of this package."""
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{PLACES[name]}"), name)
