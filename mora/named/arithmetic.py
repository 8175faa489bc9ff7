"""Weights out of adapters: a weighted sum of several, and back again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mora.adapters.patching import admitted, write
from mora.adapters.record import Adapters, host_of, is_patched
from mora.adapters.snapshot import PLACE, Snapshot, digest
from mora.bases.holding import check_holding
from mora.methods.start import factor_dtype
from mora.named.rebuild import put_back
from mora.system.checks import is_number
from mora.system.messages import listed, shown


@torch.no_grad()
def combine(model: nn.Module, weights: Mapping[str, float], keep: bool = False, dequantise: bool = False) -> nn.Module:
    """Fold a weighted sum of adapters into the weights and return the model: a plain CLIP again.

        W <- W + sum over i of w_i (W_eff,i - W)

    in float32 (float64 for float64 weights), W_eff,i unrounded, the sum rounded once to the weight's dtype. The updates
    of several adapters are not of low rank together, so that the sum is weights, not another adapter. Only those of one
    adapter with weight 1 are what `mora.merge` writes.

    Args:
        model: a patched CLIP.
        weights: a finite number for each adapter that takes part, {"films": 0.7, "food": 0.3}; any sum, any sign.
        keep: whether the model remembers adapters and original weights for `mora.unmerge`.
        dequantise: as in `mora.merge`.

    Raises ValueError when `model` is not patched, for an unknown name, a weight that is no finite number, or a sum that
    is not finite; nothing was changed then.
    """
    host = host_of(model)
    if any(slot.one_stream for slot in host.slots()):
        raise ValueError(
            "model: got a single-stream model, which has one adapter and a W_eff for each modality, expected "
            "mora.merge(model, per_modality=True)"
        )
    parts = [(host.chosen(name), weight) for name, weight in checked(weights)]
    projections = {name: projection for one, _ in parts for name, projection in one.projections()}
    check_holding(projections, dequantise)
    found = {name: summed(name, parts) for name in projections}
    if broken := [name for name, weight in found.items() if not torch.isfinite(weight).all()]:
        raise ValueError(f"combine: got NaN or infinity in {listed(broken)}, expected finite weights")
    write(model, found, projections, keep, dequantise)
    return model


def checked(weights: object) -> Iterator[tuple[str, float]]:
    """(name, weight) of every adapter that takes part; ValueError for what is none."""
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(f"weights: got {shown(weights)}, expected a number for each adapter, {{'films': 0.7}}")
    for name, weight in weights.items():
        if not isinstance(name, str):
            raise ValueError(f"weights: got the key {shown(name)}, expected the name of an adapter")
        if not is_number(weight) or not math.isfinite(weight):
            raise ValueError(f"weights[{name!r}]: got {shown(weight)}, expected a finite number")
        yield name, float(weight)


def summed(name: str, parts: list[tuple[Adapters, float]]) -> Tensor:
    """W + sum w_i (W_eff,i - W) [out, in] of one projection, over the adapters that adapt it, in the dtype of W.

    As (1 - sum w_i) W + sum w_i W_eff,i, which is W_eff,i itself for one weight of 1.
    """
    own: list[tuple[Any, float]] = [
        (projection, weight) for one, weight in parts for other, projection in one.projections() if other == name
    ]
    weight = own[0][0].weight
    wide = weight.to(factor_dtype(weight))
    total = wide * (1.0 - sum(share for _, share in own))
    for projection, share in own:
        total += share * projection.effective_weight(wide)
    return total.to(weight.dtype)


def unmerge(model: nn.Module) -> nn.Module:
    """Take back `mora.merge(model, keep=True)` or `mora.combine(..., keep=True)` and return the model.

    The original weights are there again, bit for bit, and every adapter with the parameters it had (the same objects,
    which an optimizer may hold), on the device of the weights.

    Raises ValueError when nothing was kept, when the model is patched, or when a weight is not what was written then:
    the way back would not be exact. Nothing was changed then.
    """
    inner = model
    while PLACE not in vars(inner) and isinstance(
        deeper := getattr(inner, "_orig_mod", None) or getattr(inner, "module", None), nn.Module
    ):
        inner = deeper
    snapshot = vars(inner).get(PLACE)
    if is_patched(model):
        raise ValueError("model: got one that is patched, expected a merged one: mora.unpatch first")
    if not isinstance(snapshot, Snapshot):
        raise ValueError(
            f"model: got a {type(model).__name__} that remembers no merge, expected one after mora.merge(model, "
            "keep=True) or mora.combine(model, weights, keep=True)"
        )
    check_written(inner, snapshot)
    put_back(inner, snapshot)
    delattr(inner, PLACE)
    return model


def check_written(model: nn.Module, snapshot: Snapshot) -> None:
    """Raise ValueError unless the weights of a merged model are what was written over the original ones."""
    found: dict[str, Tensor] = {}
    for one in snapshot.adapters:
        for pair in admitted(model, snapshot.towers, one.config):
            for slot in pair.values():
                targets = one.config.targets_of(slot.modality)
                found |= {slot.label(target): slot.weight(target) for target in targets}
    changed = [
        name for name, written in snapshot.written.items() if name not in found or digest(found[name]) != written
    ]
    if changed:
        raise ValueError(
            f"unmerge: the weights of {listed(changed)} are not those that were merged, expected them unchanged (dtype "
            "included): the way back would not be exact"
        )
