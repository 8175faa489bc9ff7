"""Put adapters into one CLIP and take them out again: `patch`, `unpatch`, `merge`, `disabled`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mora.adapters.first_step import await_first_step
from mora.adapters.liveness import check_runs
from mora.adapters.pairs import pair_blocks, slots_of
from mora.adapters.record import (
    DEFAULT,
    Adapters,
    Pair,
    adapters_of,
    effective_weights,
    host_of,
    is_patched,
    keep_adapters_of_a_base_checkpoint,
    restore,
    unwrap,
)
from mora.adapters.snapshot import PLACE, Snapshot, digest
from mora.bases.holding import check_holding
from mora.bases.sharded import check_whole
from mora.config import MoraConfig, check_fields
from mora.projection.adapted import Adapted
from mora.projection.site import Site
from mora.streams.merging import apart, divide
from mora.system.messages import shown
from mora.towers.admission import check_alone
from mora.towers.batch_norm import hold_statistics, release_statistics
from mora.towers.custom import described
from mora.towers.find import towers_of_itself
from mora.towers.packed import PackedProjections
from mora.towers.slots import Slot
from mora.towers.tower import Tower
from mora_kernels import backend as backends


def patch(
    model: nn.Module,
    config: MoraConfig | None = None,
    towers: Mapping[str, Any] | None = None,
    name: str = DEFAULT,
    **overrides: Any,
) -> nn.Module:
    """Adapt `model` in place and return it: only the adapters require grad afterwards.

    Args:
        model: an open_clip or Hugging Face CLIP, or any module with `towers`; this instance alone is touched.
        config: a `MoraConfig`, for example one of `mora.PRESETS`; None means the defaults.
        towers: of a model of your own, by modality: the dotted path of a list of blocks, a glob, that list itself, or a
            `mora.Tower`; docs/your_own_model.md.
        name: of this adapter, for models that get others beside it (`mora.add_adapter`).
        overrides: fields of `MoraConfig` that replace those of `config`.

    Raises:
        TypeError: an override that is no field of `MoraConfig`; the message lists them.
        ValueError: unknown model, already patched, no such block, unequal depths with `first_layer`, a block without
            such a projection, a rank above the width, a name that is none; nothing was changed then.
    """
    config = config_of(config, overrides)
    check_name(name)
    if isinstance(model, nn.Module) and is_patched(model):
        raise ValueError(
            "model: got a CLIP that is already patched, expected an untouched one: unpatch or merge first, or "
            "mora.add_adapter for another adapter beside the one it has"
        )
    return put_in(model, config, towers_of_itself(model) if towers is None else described(model, towers), name)


def put_in(model: nn.Module, config: MoraConfig, towers: dict[str, Tower], name: str) -> nn.Module:
    """As `patch`, of checked arguments."""
    pairs = admitted(model, towers, config)
    check_untouched(pairs, config)
    adapters = Adapters(config, towers, pairs, name)
    install(model, adapters)
    own = {id(parameter) for _, parameter in adapters.named_tensors()}
    adapters.trainable_before = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in own]
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in own)
    hold_statistics(model)
    model.mora = adapters.train(model.training)
    await_first_step(model, adapters)
    adapters.load_hook = model.register_load_state_dict_pre_hook(keep_adapters_of_a_base_checkpoint)
    adapters.one_call.watch(model, first=True)
    return model


def config_of(config: MoraConfig | None, overrides: Mapping[str, Any]) -> MoraConfig:
    """The configuration that was asked for; TypeError for what is none, ValueError for a wrong value."""
    if config is not None and not isinstance(config, MoraConfig):
        raise TypeError(f"config: got {type(config).__name__}, expected a MoraConfig or None")
    check_fields(overrides, TypeError)
    return MoraConfig(**overrides) if config is None else replace(config, **overrides)


def check_name(name: object) -> None:
    """Raise ValueError unless `name` may be an adapter's: it names a folder, and is a part of names in state_dict."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) or hasattr(nn.Module, name):
        raise ValueError(
            f"name: got {shown(name)}, expected 1 to 64 letters, digits, '_' and '-' that are no method of nn.Module"
        )


def unpatch(model: nn.Module) -> nn.Module:
    """Take all adapters out and return the model: original modules and weights, bit for bit.

    Raises ValueError when `model` is not patched.
    """
    host, inner = host_of(model), unwrap(model)
    check_whole(inner, "unpatch")
    take_out(inner, host)
    return model


@torch.no_grad()
def merge(model: nn.Module, keep: bool = False, dequantise: bool = False, per_modality: bool = False) -> nn.Module:
    """Fold the active adapter into the weights, W <- W_eff, and return the model: a plain CLIP again.

    W_eff is computed in float32 (float64 for float64 weights) and rounded once to the weight's dtype. Adapters beside
    the active one are gone as well.

    Args:
        model: a patched CLIP.
        keep: whether the model remembers its adapters and the original weights of what is written (their memory), so
            that `mora.unmerge` takes the merge back, bit for bit.
        dequantise: whether a projection whose weight is quantised, or offloaded to a disk, may become an `nn.Linear` in
            the dtype of its bias; docs/bases.md.
        per_modality: of a single-stream model, leave one plain weight for each modality instead, in a
            `mora.streams.ModalityLinear` at each adapted projection; docs/single_stream.md. Other models merge as ever.

    Raises ValueError when `model` is not patched, when a W_eff is not finite, when a weight is quantised and
    `dequantise` is not given (what is quantised cannot hold W_eff as it is), or when the tokens of one projection have
    a W_eff for each modality and `per_modality` is not given. Nothing was changed then.
    """
    adapters = adapters_of(model)
    projections = dict(adapters.projections())
    check_holding(projections, dequantise)
    check_whole(unwrap(model), "merge")
    weights = effective_weights(adapters)
    divided = apart(unwrap(model), projections, weights, per_modality, keep)
    for name in [name for one in divided for name in one.names]:
        del weights[name]
    write(model, weights, projections, keep, dequantise)
    for one in divided:
        divide(unwrap(model), one)
    return model


@torch.no_grad()
def write(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    projections: Mapping[str, Adapted],
    keep: bool = False,
    dequantise: bool = False,
) -> None:
    """Write weights [out, in] over those of adapted projections, by name, and take all adapters out.

    Raises as `check_holding` does.
    """
    inner, held = unwrap(model), check_holding(projections, dequantise)
    host = host_of(inner)
    places = {
        slot.label(t): (slot, t) for one in host.every().values() for slot in one.slots() for t in slot.projections
    }
    snapshot = Snapshot.of(inner) if keep else None
    for name, weight in weights.items():
        if name not in held:
            if snapshot is not None:
                snapshot.rows[name] = projections[name].weight.clone()
            projections[name].write(weight)
            if snapshot is not None:
                snapshot.written[name] = digest(projections[name].weight)
    take_out(inner, host)
    for name, base in held.items():
        slot, target = places[name]
        plain = base.plain(weights[name])
        slot.swap(target, plain)
        if snapshot is not None:
            snapshot.modules[name], snapshot.written[name] = base.linear, digest(plain.weight)
    if snapshot is not None:
        snapshot.leave(inner)
    elif hasattr(inner, PLACE):
        delattr(inner, PLACE)  # of a merge before, which can no longer be taken back


def take_out(model: nn.Module, host: Adapters) -> None:
    """The original modules back, and no record of any adapter."""
    others = [one for one in host.every().values() if one is not host]
    restore([slot for one in (host, *others) for slot in one.slots()] + host.left)
    forget(model, host)


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block `model` computes as the pretrained one, outside as the adapted one.

    No adapter computes there, whichever is active, for this thread (more exactly: this context) alone. Raises
    ValueError when `model` is not patched.
    """
    with host_of(model).switch.off():
        yield model


def admitted(model: nn.Module, towers: Mapping[str, Tower], config: MoraConfig) -> list[Pair]:
    """Return the blocks to adapt; raises ValueError when one of them cannot be, and nothing is changed."""
    slots = slots_of(model, towers, config)
    pairs = pair_blocks(slots, config)
    check_pairs(pairs, config)
    replaced: dict[str, nn.Module] = {}
    for pair in pairs:
        for modality, slot in pair.items():
            replaced |= slot.replaced(config.targets_of(modality))
    every = [slot for each in slots.values() for slot in each]
    check_alone(model, every + frozen_slots(model, towers, slots), replaced)
    return pairs


def check_untouched(pairs: list[Pair], config: MoraConfig) -> None:
    """Raise ValueError when a block is adapted already: as part of another model."""
    for slot in (slot for pair in pairs for slot in pair.values()):
        linears = [slot.linear(target) for target in config.targets_of(slot.modality)]
        owners = [slot.attention, *(getattr(linear, "owner", linear) for linear in linears)]
        if any(isinstance(owner, (Site, PackedProjections)) for owner in owners):
            raise ValueError(
                f"model: {slot.path} is adapted already, in another model that holds it, expected untouched blocks"
            )


def frozen_slots(model: nn.Module, towers: Mapping[str, Tower], adapted: Collection[str]) -> list[Slot]:
    """The slots of towers that stay as they are, where they have any."""
    found: list[Slot] = []
    for modality, tower in towers.items():
        if modality not in adapted:
            with suppress(ValueError):  # no attention that is known
                found += tower.slots(model)
    return found


def check_pairs(pairs: list[Pair], config: MoraConfig) -> None:
    """Raise ValueError unless every block has a rank and every target is there, wide enough, on one device."""
    slots = [(slot, config.targets_of(modality)) for pair in pairs for modality, slot in pair.items()]
    places = {slot.outline(targets[0]).device: slot.path for slot, targets in slots}
    if len(places) > 1:
        found = ", ".join(f"{path} on {device}" for device, path in places.items())
        raise ValueError(
            f"model: got adapted blocks on several devices ({found}), expected one: W_eff is built at once"
        )
    for slot, targets in slots:
        width, coupled = slot.width(targets), config.mode(slot.modality) == "mora"
        width = min([width, *slot.further(targets)])
        ranks = [("rank", config.rank_of(slot.modality, slot.layer, target)) for target in targets]
        for name, rank in (*ranks, *([("common_rank", config.shared_rank)] if coupled else [])):
            if rank > width:
                raise ValueError(f"{name}: got {rank}, expected at most {width}, the width of {slot.path}")
        if not coupled:
            continue
        weight = slot.outline(targets[0])
        backends.explain(config.backend, place_of(weight), weight.dtype)


def place_of(weight: Tensor) -> torch.device:
    """Where a model whose weight is still on the CPU may go: to the GPU, where there is one."""
    return torch.device("cuda") if weight.device.type == "cpu" and torch.cuda.is_available() else weight.device


def install(model: nn.Module, adapters: Adapters) -> None:
    """Put every adapted projection in its place and see that it runs; after an error everything stands as before."""
    done: list[Slot] = []
    try:
        for common, pair in zip(adapters.common_factors(), adapters.pairs, strict=True):
            for slot in pair.values():
                done.append(slot)
                own = adapters.config.at(slot.modality, slot.layer)
                slot.install(own.targets_of(slot.modality), common, own)
        adapters.build_together()
        check_runs(model, adapters)
    except BaseException:
        restore(done)
        raise


def forget(model: nn.Module, adapters: Adapters) -> None:
    """Remove the record and its hook, and let train again what trained before."""
    adapters.load_hook.remove()
    adapters.one_call.leave(model)
    release_statistics(model)
    del model.mora
    trainable = set(adapters.trainable_before)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
