"""Put an adapter beside those that a model has: guests at their sites, and new sites where nobody was adapted yet."""

from __future__ import annotations

from typing import Any

from torch import nn

from mora.adapters.liveness import check_runs
from mora.adapters.patching import admitted
from mora.adapters.record import Adapters
from mora.config import MoraConfig
from mora.projection.choice import Choice


class Named(nn.Module):
    """The adapters beside the first, and the projections of one by the parts of their names: no more than a tree."""

    def put(self, path: str, module: nn.Module) -> None:
        """Let `module` be what stands at a dotted path."""
        name, _, rest = path.partition(".")
        if not rest:
            self._modules[name] = module
            return
        if name not in self._modules:
            self._modules[name] = Named()
        inner = self._modules[name]
        assert isinstance(inner, Named)
        inner.put(rest, module)


def put_beside(model: nn.Module, host: Adapters, name: str, config: MoraConfig) -> Adapters:
    """Put an adapter beside those of a patched model, not active; after an error everything computes as before."""
    pairs = admitted(model, host.towers, config)
    adapters = Adapters(config, host.towers, pairs, name)
    choice = host.choice = host.choice or first_choice(host)
    named = host.named if isinstance(host.named, Named) else Named()
    host.named = named
    try:
        seat(adapters, choice, choice.add(name))
        adapters.build_together(host)
        named.put(name, adapters.train(model.training))
        with choice.using(
            name
        ):  # where no other adapter is, an attention does not call the site of one that is not active
            check_runs(model, adapters)
    except BaseException:
        remove(host, adapters)
        raise
    return adapters


def first_choice(host: Adapters) -> Choice:
    """The choice between adapters of a model that had one: its projections are sites."""
    choice = Choice(host.name)
    for _, projection in host.projections():
        projection.choice, projection.number = choice, choice.add_site()
        choice.seats[projection.number] = projection
    return choice


def seat(adapters: Adapters, choice: Choice, seats: list[Any]) -> None:
    """Give every projection of a new adapter its seat."""
    own = Named()
    for common, pair in zip(adapters.common_factors(), adapters.pairs, strict=True):
        for slot in pair.values():
            config = adapters.config.at(slot.modality, slot.layer)
            for target in config.targets_of(slot.modality):
                site = slot.site(target)
                if site.choice is None:
                    site.choice, site.number = choice, choice.add_site()
                projection = slot.seat(target, site, common, config)
                seats[site.number] = projection
                own.put(slot.label(target), projection)
    adapters.sites = own


def remove(host: Adapters, adapters: Adapters) -> None:
    """Forget a guest; sites that it put into the model stay, and compute for the others."""
    assert host.choice is not None
    assert host.named is not None
    host.choice.every.pop(adapters.name, None)
    host.named._modules.pop(adapters.name, None)
    for slot in adapters.slots():
        slot.let_go()
        host.left.append(slot)
    for group in adapters.own:
        host.groups.remove(group)
        group.invalidate()
