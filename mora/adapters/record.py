"""The patched model's own record: child module `mora`, owner of the common factors and of the way back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mora.bases.sharded import whole
from mora.config import MoraConfig
from mora.lora.group import LoraGroup
from mora.methods.factors import CommonFactors
from mora.methods.keeping import OneCall
from mora.methods.linear import MoraLinear
from mora.methods.shared_input import SharedInput
from mora.methods.start import factor_dtype
from mora.projection.adapted import Adapted
from mora.projection.choice import Choice
from mora.projection.switch import Switch
from mora.system.messages import listed, shown
from mora.towers.find import towers_of
from mora.towers.packed import PACKED
from mora.towers.slots import Slot
from mora.towers.tower import Tower
from mora_kernels import Group
from mora_kernels.shelf import Shelf

Pair = dict[str, Slot]
DEFAULT = "default"


class Adapters(nn.Module):
    """Everything `patch` added to one model; registered there as `mora`, gone after `unpatch` or `merge`.

    With several adapters there is one such record for each: that of the first, the host, is the model's `mora`, the
    others' are in `mora.named`. The host's projections stand in the model, the others' are guests at the same sites.

    Args:
        config: the configuration in force.
        towers: of the model, by modality.
        pairs: the blocks that share factors, one per tower at most, from bottom to top.
        name: of the adapter.

    Attributes:
        choice: which adapter computes; the host's, None where it is the only one.
        own: what of this adapter is built together: a group of MoRA's projections, a group of LoRA's.
        groups: of every adapter; the host's.
        left: slots of deleted adapters, whose sites stand in the model still; the host's.
    """

    group: Group | LoraGroup
    one_call: OneCall
    switch: Switch
    sites: nn.Module | None
    named: nn.Module | None

    def __init__(self, config: MoraConfig, towers: dict[str, Tower], pairs: list[Pair], name: str = DEFAULT) -> None:
        super().__init__()
        self.config, self.towers, self.pairs, self.name = config, towers, pairs, name
        self.choice: Choice | None = None
        self.groups: list[Group | LoraGroup] = []
        self.own: list[Group | LoraGroup] = []
        self.left: list[Slot] = []
        self.trainable_before: list[str] = []
        self.load_hook: Any = None
        self.begun = False  # whether a training forward has been looked at
        self.common = nn.ModuleList()
        for pair in pairs:
            modality, slot = next(iter(pair.items()))
            weight = slot.outline(config.targets_of(modality)[0])
            sharing = {modality: slot for modality, slot in pair.items() if config.mode(modality) == "mora"}
            widths = {modality: slot.width(config.targets_of(modality)) for modality, slot in sharing.items()}
            others = {modality: slot.further(config.targets_of(modality)) for modality, slot in sharing.items()}
            self.common.append(CommonFactors(widths, config.shared_rank, factor_dtype(weight), weight.device, others))
        self.register_module("sites", None)  # of a guest: its projections, by their names
        self.register_module("named", None)  # of a host: the other adapters, by theirs

    def _load_from_state_dict(self, *args: Any) -> None:
        """As in `nn.Module`; the common factors have memory where the weights have (`load_state_dict(assign=True)`)."""
        super()._load_from_state_dict(*args)
        for common, pair in zip(self.common_factors(), self.pairs, strict=True):
            targets = {name: self.config.targets_of(name) for name in pair}
            common.materialise({name: slot.outline(targets[name][0]).device for name, slot in pair.items()})

    @property
    def adapted(self) -> dict[str, Tower]:
        """The towers that are adapted."""
        return {name: tower for name, tower in self.towers.items() if any(name in pair for pair in self.pairs)}

    def layers(self) -> dict[str, list[int]]:
        """Indices of the adapted blocks, by modality."""
        return layers_of(self.pairs)

    def common_factors(self) -> Iterator[CommonFactors]:
        """The shared factors of every pair, from bottom to top."""
        for common in self.common:
            assert isinstance(common, CommonFactors)
            yield common

    def slots(self) -> Iterator[Slot]:
        """Every adapted block."""
        for pair in self.pairs:
            yield from pair.values()

    def projections(self) -> Iterator[tuple[str, Adapted]]:
        """(name, module) of every adapted projection; names read "image.11.v", whatever the model."""
        for slot in self.slots():
            yield from slot.named_projections()

    def every(self) -> dict[str, Adapters]:
        """The adapters of the model by name; the host's."""
        others = {} if self.named is None else self.named._modules
        return {self.name: self, **others}  # type: ignore[dict-item]

    def here(self) -> str:
        """What computes here, in words that differ where adapters do; the host's."""
        return self.name if self.choice is None else self.choice.label()

    def chosen(self, name: str | None = None) -> Adapters:
        """The adapter of a name, by default the one that is active here; ValueError for an unknown one. The host's."""
        if name is None:
            name = self.name if self.choice is None else self.choice.here()
        if name == self.name:
            return self
        every = self.every()
        if name not in every:
            raise ValueError(f"name: got {shown(name)}, expected one of the model's adapters: {listed(every)}")
        return every[name]

    def build_together(self, host: Adapters | None = None) -> None:
        """Make one group of all projections: what changes together is built together, and kept until it changes.

        Args:
            host: the first adapter's record; None: this is it.
        """
        projections = [projection for _, projection in self.projections()]
        coupled = [one for one in projections if isinstance(one, MoraLinear)]
        apart = [one for one in projections if not isinstance(one, MoraLinear)]
        self.own = [*([Group(coupled, self.config.backend)] if coupled else []), *([LoraGroup(apart)] if apart else [])]
        self.group = self.own[0]
        if host is None:
            host = self
            self.one_call = OneCall(self.groups)
            self.switch = Switch()
        self.switch = host.switch
        host.groups.extend(self.own)
        if host is not self:
            shelf = host.group.shelf or Shelf()
            for group in (*host.own, *self.own):
                group.shelf = shelf
        for group in self.own:
            for index, projection in enumerate(group.projections):
                projection.join(group, index)
                projection.switch = self.switch
        for slot in self.slots():
            together = [projection for target, projection in slot.projections.items() if target in PACKED]
            together = [projection for projection in together if projection in coupled]
            if len(together) > 1:
                shared_input = SharedInput(together)
                slot.watch(shared_input)
                for projection in together:
                    projection.shared_input = shared_input

    def named_tensors(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(name, parameter) of every adapter, each once; the same names whatever the model.

        "common.0.image" is the factor of the lowest adapted pair, "image.11.v.specific_a" belongs to one projection.
        """
        for position, common in enumerate(self.common_factors()):
            for factor in common.names:
                yield f"common.{position}.{factor}", common.get_parameter(factor)
        for name, projection in self.projections():
            for kind in projection.kinds:
                parameter = getattr(projection, kind)
                if parameter is not None:
                    yield f"{name}.{kind}", parameter

    def adopt(self, tensors: Mapping[str, nn.Parameter]) -> None:
        """Let other parameters, of the same names and shapes, be the adapter's: an optimizer knows them already."""
        owners: list[tuple[str, nn.Module, Iterable[str]]] = [
            (f"common.{position}", common, common.names) for position, common in enumerate(self.common_factors())
        ]
        owners += [(name, projection, projection.kinds) for name, projection in self.projections()]
        for name, owner, kinds in owners:
            for kind in kinds:
                if (own := getattr(owner, kind)) is not None:
                    parameter = tensors[f"{name}.{kind}"]
                    if parameter.device != own.device:
                        parameter.data = parameter.data.to(own.device)
                    setattr(owner, kind, parameter)


def towers_in(model: nn.Module) -> dict[str, Tower]:
    """The towers of a model: those it was patched with, else as `towers_of` finds them."""
    return adapters_of(model).towers if is_patched(model) else towers_of(model)


def layers_of(pairs: list[Pair]) -> dict[str, list[int]]:
    """Indices of the blocks in pairs, by modality in the order of the first pair that has it."""
    found: dict[str, list[int]] = {}
    for pair in pairs:
        for modality, slot in pair.items():
            found.setdefault(modality, []).append(slot.layer)
    return found


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile` and data-parallel wrappers."""
    while not isinstance(getattr(model, "mora", None), Adapters):
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            break
        model = inner
    return model


def is_patched(model: nn.Module) -> bool:
    """Whether `mora.patch` was applied to `model` (seen through compile and data-parallel wrappers)."""
    return isinstance(model, nn.Module) and isinstance(getattr(unwrap(model), "mora", None), Adapters)


def host_of(model: nn.Module) -> Adapters:
    """Return the record of the first adapter of a patched model; raises ValueError when it is not patched."""
    if not is_patched(model):
        raise ValueError(f"model: got a {type(model).__name__} that is not patched, expected one after mora.patch")
    record = unwrap(model).mora
    assert isinstance(record, Adapters)
    return record


def adapters_of(model: nn.Module, name: str | None = None) -> Adapters:
    """Return the record of an adapter, by default of the one that is active here.

    Raises ValueError when the model is not patched or has no adapter of that name.
    """
    return host_of(model).chosen(name)


def adapter_parameters(model: nn.Module, name: str | None = None) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield (name, parameter) of the active adapter, or of the one called `name`, each parameter once.

    Raises ValueError when `model` is not patched or has no adapter of that name.
    """
    return adapters_of(model, name).named_tensors()


def adapter_state_dict(model: nn.Module, name: str | None = None) -> dict[str, Tensor]:
    """Return every tensor of an adapter once, detached, by a stable name that is the same whatever the model.

    Args:
        model: a patched CLIP.
        name: of the adapter; None: the active one.

    Every process has to ask where `fully_shard` was applied: whole tensors are gathered.
    """
    return {name: whole(parameter.detach()) for name, parameter in adapter_parameters(model, name)}


def keep_adapters_of_a_base_checkpoint(
    model: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object
) -> None:
    """Let the untouched model's checkpoint load strictly: without any adapter key, the adapters stay as they are."""
    every = host_of(model).every().values()
    own = {id(parameter) for adapters in every for _, parameter in adapters.named_tensors()}
    current = {prefix + name: tensor for name, tensor in model.named_parameters() if id(tensor) in own}
    if not any(name in state_dict for name in current):
        state_dict.update(current)  # the parameters themselves: so they are known not to come from the checkpoint


def restore(slots: list[Slot]) -> None:
    """Put the originals back, top down."""
    for slot in reversed(slots):
        if slot.projections:
            slot.restore()


@torch.no_grad()
def effective_weights(adapters: Adapters) -> dict[str, Tensor]:
    """Return W_eff of every projection by name; raises ValueError naming those with NaN or infinity."""
    weights = {name: projection.effective_weight() for name, projection in adapters.projections()}
    broken = [name for name, weight in weights.items() if not torch.isfinite(weight).all()]
    if broken:
        raise ValueError(f"merge: got NaN or infinity in W_eff of {', '.join(broken)}, expected finite weights")
    return weights
