"""MoRA: adapt a CLIP to samples that lack their image or their text, and get a plain CLIP back.

    import mora
    mora.patch(clip, rank=4, alpha=0.01, targets=("q", "v"), last_layers=2)

The method is that of "MoRA: Missing Modality Low-Rank Adaptation for Visual Recognition" (ICLR 2026, arXiv 2511.06225).
"""

from typing import Any

from mora.adapters import adapter_parameters, adapter_state_dict
from mora.checkpoint import load_adapter, load_official, save_adapter, save_official
from mora.classifier import MissingModalityClassifier
from mora.config import PRESETS, MoraConfig
from mora.keeping import forget, keeping
from mora.linear import MoraLinear
from mora.patch import disabled, merge, patch, unpatch
from mora.savings import Hidden, Savings
from mora.savings.cache import PrefixCache
from mora.summary import summary
from mora.verify import verify
from mora.version import __version__

__all__ = [
    "PRESETS",
    "Hidden",
    "MissingModalityClassifier",
    "MoraConfig",
    "MoraLinear",
    "PrefixCache",
    "Savings",
    "__version__",
    "adapter_parameters",
    "adapter_state_dict",
    "disabled",
    "forget",
    "keeping",
    "load_adapter",
    "load_official",
    "merge",
    "patch",
    "save_adapter",
    "save_official",
    "summary",
    "train",
    "unpatch",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import on first use what needs the packages of the extra `train`."""
    if name == "train":
        from mora.training.trainer import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
