"""What a merge of one stream has to decide: whether one plain weight can stand for those of all modalities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mora.projection.adapted import Adapted
from mora.streams.calls import Routes
from mora.streams.merged import ModalityLinear
from mora.streams.site import StreamSite
from mora.system.hooks import share_hooks
from mora.system.messages import listed


@dataclass(frozen=True)
class Apart:
    """A projection whose tokens go by different weights.

    Attributes:
        path: of it in the model.
        names: of its adapted projections.
        root: path of the module whose calls say which token is what.
        routes: of the model.
        weights: [out, in] of every modality.
    """

    path: str
    names: tuple[str, ...]
    root: str
    routes: Routes
    weights: dict[str, Tensor]


def apart(
    model: nn.Module,
    projections: Mapping[str, Adapted],
    weights: Mapping[str, Tensor],
    per_modality: bool,
    keep: bool,
) -> list[Apart]:
    """The projections of a patched model that one plain weight cannot stand for.

    Args:
        model: the patched model itself.
        projections: the adapted ones by name.
        weights: W_eff of each.
        per_modality: whether they may have a weight for each modality.
        keep: whether the merge is to be taken back.

    Raises ValueError where there are some and that was not asked for, or cannot be taken back.
    """
    found = []
    for path, site in model.named_modules():
        if not isinstance(site, StreamSite) or not site.streams:
            continue
        names = {one.modality: name for name, one in projections.items() if one.stand is site}
        frozen = site.weight.detach()
        each = {m: weights[names[m]] if m in names else frozen.clone() for m in site.routes.reader.modalities}
        first, *others = each.values()
        if not all(torch.equal(first, other) for other in others):
            found.append(Apart(path, tuple(names.values()), root_of(model, site.routes), site.routes, each))
    if found and not per_modality:
        raise ValueError(
            f"per_modality: got False, but {listed([one.path for one in found], 2)} have a W_eff for each modality, "
            "which one plain weight cannot hold; expected per_modality=True, which leaves a plain weight for each"
        )
    if found and keep:
        raise ValueError("keep: got True with per_modality=True, expected False: such a merge cannot be taken back")
    return found


def root_of(model: nn.Module, routes: Routes) -> str:
    """The path of the module that `routes` watch."""
    watched = (path for path, module in model.named_modules() if routes.watches(module))
    return next(watched)


def divide(model: nn.Module, one: Apart) -> None:
    """Put a plain weight for each modality where one `nn.Linear` stands."""
    above, _, name = one.path.rpartition(".")
    linear = model.get_submodule(one.path)
    assert isinstance(linear, nn.Linear)
    routes = Routes.of(model.get_submodule(one.root), one.routes.reader)
    grows = linear.weight.requires_grad
    weights = {modality: nn.Parameter(weight, requires_grad=grows) for modality, weight in one.weights.items()}
    divided = ModalityLinear(weights, linear.bias, routes).train(linear.training)
    share_hooks(divided, linear)
    setattr(model.get_submodule(above), name, divided)
