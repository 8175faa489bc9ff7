"""A model's towers and what stands for a missing input of each: rows past the frozen blocks, and embeddings."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mora.adapters.record import is_patched, towers_in, unwrap
from mora.methods.keeping import forget
from mora.savings.options import Hidden, Savings
from mora.savings.plan import Plan
from mora.savings.runner import Runner
from mora.savings.state import kept, version
from mora.towers.custom import described


class Encoder(nn.Module):
    """The towers of a model, each run with what cannot change a result left out: what `mora.PrefixCache` takes.

    Args:
        model: with towers, patched or not.
        savings: what is left out of the computation; by default all that is exact.
        missing: what stands for a missing input, by modality; the tower's own substitute where it is not given.
        towers: of a model of your own that is not patched, as `mora.patch` takes them.

    Raises ValueError for an unknown model, and a tower whose substitute is not known.
    """

    def __init__(
        self,
        model: nn.Module,
        savings: Savings | None = None,
        missing: Mapping[str, Tensor | None] | None = None,
        towers: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        clip = self.clip
        self.towers = towers_in(clip) if towers is None else described(clip, towers)
        own = by_modality(self.towers, "missing", missing)
        self.save(Savings() if savings is None else savings)
        for modality, tower in self.towers.items():
            one = own[modality] if modality in own else tower.substitute(clip)
            self.register_buffer(f"missing_{modality}", one.to(next(clip.parameters()).device), persistent=False)

    @property
    def clip(self) -> nn.Module:
        """The model itself, inside wrappers that `mora.patch` is seen through."""
        return unwrap(self.model) if is_patched(self.model) else self.model

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def missing(self, modality: str) -> Tensor:
        """What stands for a missing input, as it was given or as the model's own preprocessing makes it."""
        missing: Tensor = getattr(self, f"missing_{modality}")
        return missing

    def prefix(self, modality: str, inputs: Tensor) -> Hidden:
        """Rows past the frozen blocks, as `forward` takes them: what `mora.PrefixCache` keeps.

        Args:
            modality: of one of the towers.
            inputs: [B, ...], as the tower takes them: preprocessed images, token ids.

        Raises ValueError for an unknown modality, and for a tower that cannot be cut there.
        """
        return self.runner(modality).prefix(self.model, inputs, self.substitute(modality))

    def embed_rows(self, modality: str, given: Tensor | Hidden, patterns: Tensor | None = None) -> Tensor:
        """Embeddings [B, e] of one modality's rows, inputs or past the frozen blocks, all of them there.

        `patterns`, int64 [B], says what else a row has, where the model has prompts (`mora.adapters.prompts`); None:
        everything.
        """
        return self.runner(modality).run(self.model, given, self.substitute(modality), patterns)

    def substitute(self, modality: str, dtype: torch.dtype | None = None) -> Tensor:
        """What stands for a missing input, in a dtype (by default the model's) unless it is tokens."""
        missing = self.missing(modality)
        if not missing.is_floating_point():
            return missing
        dtype = next(self.model.parameters()).dtype if dtype is None else dtype
        if dtype == missing.dtype:
            return missing
        name = (id(self), modality, dtype)
        return kept(self.clip, name, lambda: version(missing), lambda: missing.to(dtype))

    def runner(self, modality: str) -> Runner:
        """What runs one tower; ValueError for an unknown modality."""
        if modality not in self.runners:
            raise ValueError(f"modality: got {modality!r}, expected one of {', '.join(map(repr, self.runners))}")
        return self.runners[modality]

    def plan(self, modality: str, training: bool | None = None) -> Plan:
        """Where a tower is cut, what is saved in it, and why not more; in the mode the model is in, or another."""
        return self.runner(modality).plan(self.model, self.substitute(modality), training)

    def saved(self) -> list[str]:
        """What is saved in each tower and what is not, in words."""
        return [line for modality in self.runners for line in self.plan(modality).lines(modality)]

    def save(self, savings: Savings) -> None:
        """Leave out of the computation what `savings` says, from now on."""
        self.savings = savings
        each = self.towers.values()
        self.runners = {one.modality: Runner(one, savings, [t for t in each if t is not one]) for one in each}

    def forget(self) -> None:
        """Drop all that is kept of the model, as `mora.forget(self)`, and what was found out about its towers."""
        forget(self)
        for runner in self.runners.values():
            runner.forget()


def refusal(model: Encoder) -> str:
    """Why the rows past an encoder's frozen blocks cannot be kept, in words; "" when they can."""
    plans = {modality: model.plan(modality, training=True) for modality in model.towers}
    reasons = {
        modality: plan.whole or plan.reasons.get("cache", "not frozen")
        for modality, plan in plans.items()
        if plan.whole or not plan.frozen
    }
    if not reasons and all(plan.first == 0 < plan.depth for plan in plans.values()):
        reasons = {modality: plan.reasons.get("cache", "no block is frozen") for modality, plan in plans.items()}
    return "; ".join(f"{modality}: {reason}" for modality, reason in reasons.items())


def by_modality(towers: Collection[str], name: str, *given: Mapping[str, Tensor | None] | None) -> dict[str, Tensor]:
    """What was given for each modality, by whichever argument; ValueError for one that is none of the towers'."""
    found = {key: value for one in given for key, value in (one or {}).items() if value is not None}
    if unknown := [modality for modality in found if modality not in towers]:
        raise ValueError(f"{name}: got {', '.join(unknown)}, expected some of {', '.join(towers)}")
    return found


def whole(modality: str, present: Tensor, count: int) -> Tensor:
    """The mask bool [N] of samples that have a modality."""
    if present.dtype != torch.bool or tuple(present.shape) != (count,):
        got = f"{present.dtype} {tuple(present.shape)}"
        raise ValueError(f"{modality}_present: got {got}, expected a bool tensor of ({count},)")
    return present.cpu()
