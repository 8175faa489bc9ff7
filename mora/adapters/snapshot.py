"""The adapters of a model apart from it: what is needed to put them in again as they were, the same parameters."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mora.adapters.record import Adapters, host_of
from mora.config import MoraConfig
from mora.towers.tower import Tower

PLACE = "_mora_unmerged"  # of a snapshot in a merged model: no module, so that its names stay those of a plain one


@dataclass
class Apart:
    """One adapter: its name, configuration and parameters."""

    name: str
    config: MoraConfig
    tensors: dict[str, nn.Parameter]
    begun: bool

    @classmethod
    def of(cls, adapters: Adapters) -> Apart:
        """Take it from its record."""
        return cls(adapters.name, adapters.config, dict(adapters.named_tensors()), adapters.begun)


@dataclass
class Snapshot:
    """All adapters of a model, the first one first, and which of them is set.

    Attributes:
        rows: original weights [out, in] that were written over, by the name of their projection.
        modules: original linears that others stand for now, likewise.
        written: the digest of what was written there.
    """

    towers: dict[str, Tower]
    adapters: list[Apart]
    active: str
    rows: dict[str, Tensor] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> Snapshot:
        """Take it of a patched model, whose weights are not looked at."""
        host = host_of(model)
        active = host.name if host.choice is None else host.choice.name
        return cls(host.towers, [Apart.of(one) for one in host.every().values()], active)

    def leave(self, model: nn.Module) -> None:
        """Let a merged model keep it."""
        setattr(model, PLACE, self)


def digest(weight: Tensor) -> str:
    """SHA-256 of the bytes, the dtype and the shape of a weight, wherever it is."""
    flat = weight.detach().reshape(-1).view(torch.uint8).cpu().numpy()
    return f"{weight.dtype} {tuple(weight.shape)} {hashlib.sha256(flat.data).hexdigest()}"
