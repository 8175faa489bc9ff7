"""MoRA: adapt a CLIP to samples that lack their image or their text, and get a plain CLIP back.

    import mora
    mora.patch(clip, rank=4, alpha=0.01, targets=("q", "v"), last_layers=2)

The method is that of "MoRA: Missing Modality Low-Rank Adaptation for Visual Recognition" (ICLR 2026, arXiv 2511.06225).
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mora.version import __version__

if TYPE_CHECKING:
    from mora.adapters import adapter_parameters, adapter_state_dict
    from mora.checkpoint import load_adapter, load_official, save_adapter, save_adapters, save_official, to_peft
    from mora.classifier import MissingModalityClassifier
    from mora.config import PRESETS, MoraConfig
    from mora.diagnosis import Diagnosis, diagnose
    from mora.evaluation.cosines.embed import embed
    from mora.keeping import forget, keeping
    from mora.linear import MoraLinear
    from mora.named import active_adapter, add_adapter, combine, delete_adapter, set_adapter, unmerge, using
    from mora.patch import disabled, merge, patch, unpatch
    from mora.savings import Hidden, Savings
    from mora.savings.cache import PrefixCache
    from mora.streams import route
    from mora.summary import summary
    from mora.sweeping.sweep import Sweep, sweep
    from mora.towers.custom import Tower
    from mora.training.trainer import train
    from mora.verify import verify

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
    "mora.adapters": ("adapter_parameters", "adapter_state_dict"),
    "mora.checkpoint": ("load_adapter", "load_official", "save_adapter", "save_adapters", "save_official", "to_peft"),
    "mora.classifier": ("MissingModalityClassifier",),
    "mora.config": ("PRESETS", "MoraConfig"),
    "mora.diagnosis": ("Diagnosis", "diagnose"),
    "mora.evaluation.cosines.embed": ("embed",),
    "mora.keeping": ("forget", "keeping"),
    "mora.linear": ("MoraLinear",),
    "mora.named": (
        "active_adapter",
        "add_adapter",
        "combine",
        "delete_adapter",
        "set_adapter",
        "unmerge",
        "using",
    ),
    "mora.patch": ("disabled", "merge", "patch", "unpatch"),
    "mora.savings": ("Hidden", "Savings"),
    "mora.savings.cache": ("PrefixCache",),
    "mora.streams": ("route",),
    "mora.summary": ("summary",),
    "mora.sweeping.sweep": ("Sweep", "sweep"),
    "mora.towers.custom": ("Tower",),
    "mora.training.trainer": ("train",),
    "mora.verify": ("verify",),
}
PLACES = {name: place for place, names in NAMES.items() for name in names}


class Package(ModuleType):
    """The package itself: public names appear on first use, and `mora.patch` is the function in every import order.

    Importing the module `mora.patch` from anywhere binds `patch` in the package to the module, which has the function's
    name; the function is bound instead.
    """

    def __getattr__(self, name: str) -> Any:
        if name not in PLACES:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(PLACES[name]), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and PLACES.get(name) == value.__name__:
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = Package
