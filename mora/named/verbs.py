"""PEFT's verbs for adapters with names: add, set, use for a while, delete."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from mora.adapters.patching import check_name, config_of, take_out
from mora.adapters.record import Adapters, adapters_of, host_of, unwrap
from mora.adapters.snapshot import Snapshot
from mora.config import MoraConfig
from mora.named.guest import put_beside, remove
from mora.named.rebuild import put_back
from mora.system.messages import listed, shown


def add_adapter(model: nn.Module, name: str, config: MoraConfig | None = None, **overrides: Any) -> nn.Module:
    """Put another adapter, with a configuration of its own, beside those of a patched model, and return the model.

    It is not active, and does not require grad, until `mora.set_adapter` says so. What the active one computes does not
    change, nor do names in `state_dict`: the new tensors are below `mora.named.NAME`.

    Args:
        model: a patched CLIP.
        name: letters, digits, "_" and "-".
        config: a `MoraConfig`; None means the defaults. Ranks, targets, blocks, alpha and towers are its own.
        overrides: fields of `MoraConfig` that replace those of `config`.

    Raises:
        TypeError: an override that is no field of `MoraConfig`.
        ValueError: `model` is not patched, `name` is taken or no name, or `config` does not fit the model; the model
            computes as before then.
    """
    host = host_of(model)
    config = config_of(config, overrides)
    check_new(host, name)
    own = put_beside(unwrap(model), host, name, config)
    for _, parameter in own.named_tensors():
        parameter.requires_grad_(False)
    return model


def set_adapter(model: nn.Module, name: str, trainable: bool = True) -> nn.Module:
    """Let the adapter called `name` be the active one, for every thread that does not use another; return the model.

    To compute by another adapter is one pointer; what is kept of it (`mora.keeping`) is used again. Only its tensors
    require grad then, as in PEFT. Between a forward call with activation checkpointing and its backward pass, which
    computes blocks again, the adapter is to stay the same.

    Args:
        model: a patched CLIP.
        name: of one of its adapters.
        trainable: whether the adapter requires grad; False: none of the adapters does.

    Raises ValueError when `model` is not patched or has no such adapter; nothing was changed then.
    """
    host = host_of(model)
    chosen = host.chosen(checked(name))
    for one in host.every().values():
        for _, parameter in one.named_tensors():
            wanted = trainable and one is chosen
            if parameter.requires_grad != wanted:
                parameter.requires_grad_(wanted)
    if host.choice is not None:
        host.choice.choose(name)
    return model


def active_adapter(model: nn.Module) -> str:
    """Return the name of the adapter that is active here: the one that is set, or that of `mora.using` around.

    Raises ValueError when `model` is not patched.
    """
    return adapters_of(model).name


@contextmanager
def using(model: nn.Module, name: str | Sequence[str]) -> Iterator[nn.Module]:
    """Within the block the adapter called `name` is the active one, for this thread (more exactly: this context) alone.

        with mora.using(clip, "films"): clip.encode_image(images)
        with mora.using(clip, ["films", "food", "films"]): clip.encode_image(three_images)

    No tensor is told whether it requires grad. Blocks may nest, `mora.disabled` within and around them. Under
    `torch.compile` a block costs graph breaks, `mora.set_adapter` none.

    Args:
        model: a patched CLIP.
        name: of one of its adapters; or one for each row of the batches within the block: what their rows have in
            common is computed together, adapted projections once for each adapter. Each row comes out as if its adapter
            were the active one, up to rounding.

    Raises ValueError when `model` is not patched, has no such adapter, or a batch has another number of rows.
    """
    host = host_of(model)
    names = [name] if isinstance(name, str) or not isinstance(name, Sequence) else name
    for one in names:
        host.chosen(checked(one))
    if not names:
        raise ValueError("name: got no names, expected one for each row")
    if not isinstance(name, str):
        check_batch_first(host)
    if host.choice is None:  # the only one there is
        yield model
        return
    with host.choice.using(name):
        yield model


def delete_adapter(model: nn.Module, name: str) -> nn.Module:
    """Take the adapter called `name` out of a model that has others, and return the model.

    Deleting the first adapter (the one of `mora.patch`) puts the others in anew, with the same parameters: the next one
    is the first then, and its names in `state_dict` are those of a model's only adapter.

    Raises ValueError when `model` is not patched, has no such adapter or no other, or when it is the active one.
    """
    host = host_of(model)
    gone = host.chosen(checked(name))
    others = [other for other in host.every() if other != name]
    if host.choice is None or not others:
        raise ValueError(f"name: got {name!r}, the model's only adapter, expected one of several: mora.unpatch it")
    if name in host.choice.used():
        raise ValueError(
            f"name: got {name!r}, which is active, expected one that nobody computes with: mora.set_adapter(model, "
            f"{others[0]!r}) first, and no block of mora.using with it"
        )
    if gone is not host:
        remove(host, gone)
        return model
    inner, snapshot = unwrap(model), Snapshot.of(model)
    if host.choice.blocks:
        raise ValueError(f"name: got {name!r}, the first adapter, expected no open block of mora.using to delete it")
    snapshot.adapters = [one for one in snapshot.adapters if one.name != name]
    trainable = host.trainable_before
    take_out(inner, host)
    put_back(inner, snapshot)
    host_of(inner).trainable_before = trainable
    return model


def check_new(host: Adapters, name: str) -> None:
    """Raise ValueError unless `name` may be that of another adapter."""
    check_name(name)
    if any(slot.one_stream for slot in host.slots()):
        raise ValueError(
            f"name: got {name!r} beside {host.name!r} in a single-stream model, which takes one adapter, expected "
            "mora.unpatch or mora.merge before another mora.patch"
        )
    if name in host.every():
        raise ValueError(
            f"name: got {name!r}, which is taken, expected none of {listed(host.every())}: mora.delete_adapter it, or "
            "mora.load_adapter(model, folder, name=...) to load into it"
        )


def check_batch_first(host: Adapters) -> None:
    """Raise ValueError where rows of a batch are not the first dimension of what projections are given."""
    for one in host.every().values():
        for slot in one.slots():
            if getattr(slot.attention, "batch_first", True) is False:
                raise ValueError(
                    f"name: got one for each row, but {slot.path} is given its batch second (batch_first=False), "
                    "expected one name, and a call for each adapter"
                )


def checked(name: object) -> str:
    """A name as it was given; ValueError for anything else than text."""
    if not isinstance(name, str):
        raise ValueError(f"name: got {shown(name)}, expected the name of an adapter")
    return name
