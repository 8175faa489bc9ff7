"""What stored rows depend on: with any part of it changed they have another name, so that nothing stale is read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from mora.data.modalities import modality
from mora.savings.contents import digest_of
from mora.savings.determinism import probes, why_random
from mora.savings.encoder import Encoder
from mora.savings.store import content

FORMAT = 1
PACKAGES = ("torch", "open_clip_torch", "timm", "transformers", "torchvision", "pillow")
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
TEXTS = ("", "a photo of a cat", "Crème brûlée, 2 cups \N{DANGO}", "WORDS " * 120, "tail " * 76 + "end")


def prefix_state(model: Encoder) -> dict[str, Any]:
    """What of the model decides the rows: weights and form below the first trained block, where it lies, precision.

    Everything counts that is not known to be above: embeddings and norms of all towers count for each.
    """
    clip = model.clip
    cuts = {modality: model.plan(modality).first for modality in model.towers}
    blocks = [block for modality, first in cuts.items() for block in model.towers[modality].blocks(clip)[:first]]
    device = model.device
    return {
        "weights": tensors_state(weights_below(model)),
        "blocks": digest(repr(block) for block in blocks),
        "class": f"{type(clip).__module__}.{type(clip).__qualname__}",
        "config": digest([repr(getattr(clip, "config", None))]),
        "first": cuts,
        "device": device.type,
        "autocast": str(torch.get_autocast_dtype(device.type)) if torch.is_autocast_enabled(device.type) else "off",
        "tf32": torch.backends.cuda.matmul.allow_tf32 if device.type == "cuda" else False,
        "substitutes": tensors_state({modality: model.missing(modality) for modality in cuts}),
    }


def weights_below(model: Encoder) -> dict[str, Tensor]:
    """Every weight and buffer that is not known to be above the cut of its tower, by name."""
    clip = model.clip
    above = [block for m, tower in model.towers.items() for block in tower.blocks(clip)[model.plan(m).first :]]
    left_out = {id(tensor) for block in above for tensor in (*block.parameters(), *block.buffers())}
    return {
        name: tensor
        for name, tensor in (*clip.named_parameters(), *clip.named_buffers())
        if id(tensor) not in left_out and not name.startswith("mora.")
    }


def weights_sum(model: Encoder) -> bytes | str:
    """What changes when one byte of the weights below the cuts does: XXH3 in the CPU's memory, SHA-256 elsewhere."""
    below = weights_below(model)
    return digest_of(below.values()) or tensors_state(below)


def sample_parts(
    dataset: Any,
    preprocess: Callable[[Any], Tensor],
    tokenize: Callable[[Sequence[str]], Tensor],
    others: Mapping[str, Callable[[Any], Tensor]] | None = None,
) -> dict[str, Any]:
    """What the samples of a `mora.data.Dataset` depend on, as `mora.PrefixCache` takes it.

    `others` are preprocessings of further modalities, by name: what they make of `mora.data.Modality.probes` counts.

    Raises ValueError, with the reason, when inputs are augmented at random, or a modality has no probes.
    """
    if reason := why_random(preprocess):
        raise ValueError(f"cache: {reason}")
    parts = {"data": dataset.stamp(), **preprocess_state(preprocess), **tokenizer_state(tokenize)}
    for name, step in (others or {}).items():
        probed = modality(name).probes()
        if reason := why_random(step, modality(name)):
            raise ValueError(f"cache: {reason}")
        if not probed:
            raise ValueError(f"cache: {name} has no probes, so that nobody would know when its preprocessing changes")
        made = {f"{place}": step(value) for place, value in enumerate(probed)}
        parts[name] = {"preprocess": ADDRESS.sub("", repr(step)), "preprocessed": tensors_state(made)}
    return parts


def preprocess_state(preprocess: Callable[[Any], Tensor]) -> dict[str, str]:
    """What of a preprocessing decides its output: how it describes itself, and what it makes of noise."""
    images = {f"{place}": preprocess(image) for place, image in enumerate(probes())}
    return {"preprocess": ADDRESS.sub("", repr(preprocess)), "preprocessed": tensors_state(images)}


def tokenizer_state(tokenize: Callable[[Sequence[str]], Tensor]) -> dict[str, str]:
    """What of a tokenizer, under its token policy, decides its output: what it makes of some texts."""
    return {"tokenized": tensors_state({"texts": tokenize(list(TEXTS))})}


def versions() -> dict[str, str]:
    """The packages in which a number can change."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def key(parts: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal, of named parts."""
    return hashlib.sha256(json.dumps({"format": FORMAT, **parts}, sort_keys=True).encode()).hexdigest()


def tensors_state(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes, dtypes and bytes."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().cpu().contiguous()
        total.update(f"{name} {flat.dtype} {tuple(flat.shape)}\n".encode())
        total.update(content(flat))
    return total.hexdigest()


def digest(parts: Iterable[str]) -> str:
    """SHA-256 of some texts, addresses in memory left out."""
    return hashlib.sha256("\n".join(ADDRESS.sub("", part) for part in parts).encode()).hexdigest()
