"""Put adapters that were taken out of a model in again: the same parameters, which optimizers know."""

from __future__ import annotations

import torch
from torch import nn

from mora.adapters.patching import admitted, put_in, take_out
from mora.adapters.record import host_of
from mora.adapters.snapshot import Snapshot
from mora.named.guest import put_beside


def put_back(model: nn.Module, snapshot: Snapshot) -> None:
    """Put the adapters of a snapshot into a model that has none; after an error it has none.

    Original weights that the snapshot holds are written back, bit for bit. The random state is left as it was.
    """
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    first, *others = snapshot.adapters
    put_back_modules(model, snapshot)
    with torch.random.fork_rng(devices=[device.index or 0 for device in devices]):
        put_in(model, first.config, snapshot.towers, first.name)
        host = host_of(model)
        try:
            for other in others:
                put_beside(model, host, other.name, other.config)
        except BaseException:
            take_out(model, host)
            raise
    write_rows(model, snapshot)
    for one, own in zip(snapshot.adapters, host.every().values(), strict=True):
        for _, projection in own.projections():
            projection.settle()  # its start, from the weights that are there now
        own.adopt(one.tensors)
        own.begun = one.begun
    if host.choice is not None:
        host.choice.choose(snapshot.active)


@torch.no_grad()
def write_rows(model: nn.Module, snapshot: Snapshot) -> None:
    """Write the original weights of a snapshot over what was merged."""
    every = host_of(model).every().values()
    projections = {name: projection for one in every for name, projection in one.projections()}
    for name, rows in snapshot.rows.items():
        projections[name].write(rows)


def put_back_modules(model: nn.Module, snapshot: Snapshot) -> None:
    """Put the original linears of a snapshot where others stand for them."""
    for one in snapshot.adapters if snapshot.modules else ():
        for slot in (slot for pair in admitted(model, snapshot.towers, one.config) for slot in pair.values()):
            for target in one.config.targets_of(slot.modality):
                if (module := snapshot.modules.pop(slot.label(target), None)) is not None:
                    slot.swap(target, module)
