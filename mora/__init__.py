"""MoRA: adapt a CLIP to samples that lack their image or their text, and get a plain CLIP back.

    import mora
    mora.patch(clip, rank=4, alpha=0.01, targets=("q", "v"), last_layers=2)

The method is that of "MoRA: Missing Modality Low-Rank Adaptation for Visual Recognition" (ICLR 2026, arXiv 2511.06225).
"""

import importlib
from typing import TYPE_CHECKING, Any

from mora.version import __version__

if TYPE_CHECKING:
    from mora.adapters.overview import summary
    from mora.adapters.patching import disabled, merge, patch, unpatch
    from mora.adapters.record import adapter_parameters, adapter_state_dict
    from mora.adapters.verification import verify
    from mora.checkpoint import load_adapter, load_official, save_adapter, save_adapters, save_official, to_peft
    from mora.classifier import MissingModalityClassifier
    from mora.config import PRESETS, MoraConfig
    from mora.diagnosis.diagnose import diagnose
    from mora.diagnosis.report import Diagnosis
    from mora.evaluation.cosines.embed import embed
    from mora.methods.keeping import forget, keeping
    from mora.methods.linear import MoraLinear
    from mora.named import active_adapter, add_adapter, combine, delete_adapter, set_adapter, unmerge, using
    from mora.savings import Hidden, Savings
    from mora.savings.cache import PrefixCache
    from mora.streams import route
    from mora.sweeping.sweep import Sweep, sweep
    from mora.towers.custom import Tower
    from mora.training.trainer import train

__all__ = [
    "PRESETS",
    "Diagnosis",
    "Hidden",
    "MissingModalityClassifier",
    "MoraConfig",
    "MoraLinear",
    "PrefixCache",
    "Savings",
    "Sweep",
    "Tower",
    "__version__",
    "active_adapter",
    "adapter_parameters",
    "adapter_state_dict",
    "add_adapter",
    "combine",
    "delete_adapter",
    "diagnose",
    "disabled",
    "embed",
    "forget",
    "keeping",
    "load_adapter",
    "load_official",
    "merge",
    "patch",
    "route",
    "save_adapter",
    "save_adapters",
    "save_official",
    "set_adapter",
    "summary",
    "sweep",
    "to_peft",
    "train",
    "unmerge",
    "unpatch",
    "using",
    "verify",
]

# Imported on first use: `import mora` and `mora --help` wait for no torch; `train` and `sweep` alone need their extras.
NAMES = {
    "mora.adapters.overview": ("summary",),
    "mora.adapters.patching": ("disabled", "merge", "patch", "unpatch"),
    "mora.adapters.record": ("adapter_parameters", "adapter_state_dict"),
    "mora.adapters.verification": ("verify",),
    "mora.checkpoint": ("load_adapter", "load_official", "save_adapter", "save_adapters", "save_official", "to_peft"),
    "mora.classifier": ("MissingModalityClassifier",),
    "mora.config": ("PRESETS", "MoraConfig"),
    "mora.diagnosis": ("Diagnosis", "diagnose"),
    "mora.evaluation.cosines.embed": ("embed",),
    "mora.methods.keeping": ("forget", "keeping"),
    "mora.methods.linear": ("MoraLinear",),
    "mora.named": (
        "active_adapter",
        "add_adapter",
        "combine",
        "delete_adapter",
        "set_adapter",
        "unmerge",
        "using",
    ),
    "mora.savings": ("Hidden", "Savings"),
    "mora.savings.cache": ("PrefixCache",),
    "mora.streams": ("route",),
    "mora.sweeping.sweep": ("Sweep", "sweep"),
    "mora.towers.custom": ("Tower",),
    "mora.training.trainer": ("train",),
}
PLACES = {name: place for place, names in NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name, imported on first use."""
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(PLACES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
