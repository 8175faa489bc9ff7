"""Proof at `patch` that what was put in will run: by the classes on the way, or by one small forward pass."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mora.adapters.record import Adapters
from mora.system.hooks import TABLES
from mora.towers.admission import untrusted
from mora.towers.cutting import evaluating
from mora.towers.tower import fitting


def check_runs(model: nn.Module, adapters: Adapters) -> None:
    """Raise ValueError that names the adapted projections that `model` does not run.

    Nothing is computed where every module from `model` down to the attention is one of torch's, open_clip's or
    transformers' own, or where weights are on the meta device. Else every adapted tower runs once on a small input, in
    eval mode, without gradient; the random state is left as it was, and users' hooks do not see it.
    """
    strange = untrusted(model, [path for slot in adapters.slots() for path in slot.paths])
    projections = dict(adapters.projections())
    if not strange or any(projection.outline.is_meta for projection in projections.values()):
        return
    ran: set[str] = set()
    adapted = adapters.adapted
    tried = {modality: tower for modality, tower in adapted.items() if not tower.untried(model)}
    for modality, tower in adapted.items():
        if modality not in tried:
            warnings.warn(
                f"mora.patch: whether the {modality} tower runs what was adapted was not tried: {tower.untried(model)}",
                stacklevel=4,
            )
    weight = next(iter(projections.values())).outline
    devices = [weight.device] if weight.is_cuda else []
    try:
        with quiet(model), evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=devices):
            for name, projection in projections.items():
                projection.stand.register_forward_hook(lambda *_, name=name: ran.add(name))
            for tower in tried.values():
                tower.encode(model, fitting(tower.random(model, batch=1), weight))
    except Exception as error:  # whatever a class of the user's own may raise
        warnings.warn(
            f"mora.patch: {', '.join(strange)} may not run what was adapted, and trying it failed "
            f"({type(error).__name__}: {error}); call mora.verify(model) when the model can run",
            stacklevel=3,
        )
        return
    if dead := [name for name, p in projections.items() if p.modality in tried and name not in ran]:
        raise ValueError(
            f"model: {', '.join(dead)} would never run: {', '.join(strange)} does not call the modules that hold these "
            "projections; expected towers that call their attention, and attention that calls its projections"
        )


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """No hook of `model`'s modules fires within the block; hooks registered there are gone after it."""
    tables = [name for name in TABLES if name.startswith("_forward")]
    kept = [(module, {name: module.__dict__[name] for name in tables}) for module in model.modules()]
    try:
        for module, _ in kept:
            module.__dict__.update({name: OrderedDict() for name in tables})
        yield
    finally:
        for module, hooks in kept:
            module.__dict__.update(hooks)
