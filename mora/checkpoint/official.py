"""The reference implementation's checkpoint, `best_model.pt`: its names, both ways.

Its modality "vision" is "image" here, `shared_A` is the text factor and `shared_B` the vision factor of a block,
`modality_A`, `modality_B` are A and B, and magnitudes are stored [1, d]. The shared pair stands under the first adapted
projection of the text block in the order k, v, q, out, in which the attention module there registers its children.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mora.adapters.pairs import pair_blocks, slots_of
from mora.adapters.patching import check_pairs, patch
from mora.adapters.record import Adapters, Pair, adapter_state_dict, adapters_of, is_patched, unwrap
from mora.checkpoint.tensors import (
    assign,
    check_plain,
    check_same_adapters,
    check_tensors,
    check_values,
    config_from,
    expected_shapes,
)
from mora.config import MoraConfig
from mora.system.files import read_pickled, write_bytes
from mora.system.messages import printable, shown
from mora.towers.find import towers_of, towers_of_itself

REGISTRATION_ORDER = ("k", "v", "q", "out")
KINDS = {
    "modality_A": "specific_a",
    "modality_B": "specific_b",
    "shared_magnitude": "common_magnitude",
    "specific_magnitude": "specific_magnitude",
}
OFFICIAL_KINDS = {ours: theirs for theirs, ours in KINDS.items()}
TOWERS = {"vision": "image", "text": "text"}
OFFICIAL_TOWERS = {ours: theirs for theirs, ours in TOWERS.items()}
BLOCK = "(0|[1-9][0-9]{0,3})"  # spelled in one way, so that no tensor comes twice
PROJECTION = re.compile(rf"model\.(vision|text)_model\.encoder\.layers\.{BLOCK}\.self_attn\.(q|k|v|out)_proj\.(\w+)")
SHARED = re.compile(
    rf"(?:model\.(?:vision|text)_model\.encoder\.layers\.{BLOCK}\.self_attn\.\w+_proj\.shared_params"
    rf"|shared_params_dict\.layer_{BLOCK})\.shared_([AB])"
)
# Bytes; the published ones have under 1 MB, adapters of every block of the largest CLIP some 200 MB.
LARGEST_CHECKPOINT = 1 << 32
METADATA = ("num_classes", "shared_rank", "vision_rank", "text_rank", "alpha")


def load_official(model: nn.Module, path: str | os.PathLike[str]) -> tuple[Tensor, Tensor]:
    """Load the reference implementation's `best_model.pt` and return the classifier's (weight [C, 2e], bias [C]).

    An unpatched model is patched first, with what the file implies (dropout at its default). The file is read by
    `torch.load(weights_only=True)`: it cannot run code.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not such a checkpoint; another rank, alpha, target, layer or width than the patched model's; a
            missing, extra or non-finite tensor, or one that is sparse, quantised or has no elements; a head of another
            shape. The message names it, and the model is as it was.
    """
    path = Path(path)
    content = read(path)
    metadata = content.pop("_metadata")
    head = {name: content.pop(name, None) for name in ("cls_head.weight", "cls_head.bias")}
    check_plain(str(path), content)
    tensors, layers, targets = translate(path, content)
    patched = is_patched(model)
    config = adapters_of(model).config if patched else MoraConfig()
    theirs = config_of(
        path,
        metadata,
        layers,
        targets,
        replace(config, layers=None, first_layer=layers[0], pair_layers="top", adapt=None, method="mora"),
    )
    pairs = pairs_for(path, model, theirs, layers)
    tensors = {name if not name.startswith("common") else rename(name, layers): t for name, t in tensors.items()}
    check_tensors(str(path), tensors, expected_shapes(pairs, theirs))
    clip = unwrap(model) if patched else model
    width = sum(tower.width(clip) for tower in towers_of(clip).values())
    weight, bias = checked_head(path, head, metadata["num_classes"], width)
    if not patched:
        patch(model, theirs)
    assign(adapters_of(model), tensors, str(path))
    return weight, bias


def pairs_for(path: Path, model: nn.Module, theirs: MoraConfig, layers: list[int]) -> list[Pair]:
    """The model's blocks that a checkpoint adapts, patched or to be; ValueError where they are not the same."""
    if is_patched(model):
        check_same_adapters(str(path), theirs, adapters_of(model))
        pairs = adapters_of(model).pairs
    else:
        pairs = pair_blocks(slots_of(model, towers_of_itself(model), theirs), theirs)
        check_pairs(pairs, theirs)
    adapted = {slot.layer for pair in pairs for slot in pair.values()}
    if adapted != set(layers):
        raise ValueError(f"layers: {path} adapts {layers}, the model {sorted(adapted)}: expected the same blocks")
    return pairs


def checked_head(path: Path, head: Mapping[str, Any], classes: object, width: int) -> tuple[Tensor, Tensor]:
    """(weight [C, 2e], bias [C]) of the classifier, finite; ValueError names what is absent or does not fit."""
    if not isinstance(classes, int) or isinstance(classes, bool) or not 1 <= classes <= LARGEST_CHECKPOINT:
        raise ValueError(f"{path}: num_classes is {shown(classes)}, expected an int of at least 1")
    check_tensors(str(path), head, {"cls_head.weight": (classes, width), "cls_head.bias": (classes,)})
    return head["cls_head.weight"].detach(), head["cls_head.bias"].detach()


def save_official(
    model: nn.Module,
    path: str | os.PathLike[str],
    classifier: nn.Linear | tuple[Tensor, Tensor],
    backbone_name: str = "ViT-B/16",
) -> Path:
    """Write a patched model's adapters and its classifier as the reference implementation's `best_model.pt`.

    Args:
        model: a patched CLIP, both towers adapted at the same block indices (that format pairs by index).
        path: file to write; it appears by rename.
        classifier: the linear head, or its (weight, bias).
        backbone_name: recorded in the file's metadata.

    Raises ValueError when the model is not patched, what is adapted has no place in that format, or a tensor has NaN or
    infinity: what loading refuses is not saved, and a file that stood there stays.
    """
    adapters = adapters_of(model)
    config = adapters.config
    if config.modes() != {"mora"}:
        raise ValueError(f"model: got {' and '.join(sorted(config.modes()))}, expected MoRA: that format has no other")
    if config.variant != "official":
        raise ValueError(f"model: got variant {config.variant!r}, expected 'official': that format has no other")
    ranks = official_ranks(adapters)
    if isinstance(classifier, nn.Module) and not isinstance(classifier, nn.Linear):
        raise ValueError(
            f"classifier: got a head of kind {type(classifier).__name__}, expected an nn.Linear: that format has no "
            "other head"
        )
    weight, bias = (classifier.weight, classifier.bias) if isinstance(classifier, nn.Linear) else classifier
    content: dict[str, Any] = {}
    ours = adapter_state_dict(model)
    first = next(target for target in REGISTRATION_ORDER if target in config.targets_of("text"))
    for position, pair in enumerate(adapters.pairs):
        shared = f"{official_prefix('text', pair['text'].layer, first)}.shared_params"
        content[f"{shared}.shared_A"] = ours[f"common.{position}.text"]
        content[f"{shared}.shared_B"] = ours[f"common.{position}.image"]
    for name, tensor in ours.items():
        if not name.startswith("common"):
            modality, layer, target, kind = name.split(".")
            row = tensor[None] if kind.endswith("magnitude") else tensor
            content[f"{official_prefix(modality, int(layer), target)}.{OFFICIAL_KINDS[kind]}"] = row
    content |= {"cls_head.weight": weight.detach(), "cls_head.bias": bias.detach()}
    path = Path(path)
    check_values(str(path), content)
    content = {name: tensor.cpu().clone() for name, tensor in content.items()}
    content["_metadata"] = {
        "backbone_name": backbone_name,
        "num_classes": weight.shape[0],
        "shared_rank": config.shared_rank,
        "vision_rank": ranks["image"],
        "text_rank": ranks["text"],
        "alpha": config.alpha_of("text"),
        "merged_layers": [],
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue())
    return path


def official_ranks(adapters: Adapters) -> dict[str, int]:
    """The rank of each tower; ValueError for what is adapted in a way that the format has no place for."""
    config, slots = adapters.config, list(adapters.slots())
    towers = [*OFFICIAL_TOWERS]
    if any(slot.one_stream for slot in slots):
        raise ValueError("model: got a single-stream model, expected towers of their own: that format has no other")
    if [*adapters.adapted] != towers or any(len(pair) < len(towers) for pair in adapters.pairs):
        found = ", ".join(f"{len(layers)} blocks of {name}" for name, layers in adapters.layers().items())
        raise ValueError(f"model: got {found} adapted, expected pairs of image and text: that format has no other")
    if any(len({slot.layer for slot in pair.values()}) > 1 for pair in adapters.pairs):
        raise ValueError("model: got towers paired at different block indices, expected the same: that format has one")
    for field, one in (("alpha", config.alpha_of), ("targets", config.targets_of)):
        if one(towers[0]) != one(towers[1]):
            raise ValueError(
                f"{field}: got {getattr(config, field)!r}, expected one for both towers: that format has one"
            )
    targets = config.targets_of(towers[0])
    if other := [target for target in targets if target not in REGISTRATION_ORDER]:
        raise ValueError(
            f"targets: got {', '.join(map(repr, other))}, expected attention alone: that format has no MLP"
        )
    if any(slot.further(targets) for slot in slots):
        raise ValueError("model: got projections that are not square, expected square ones: that format has no other")
    ranks = {(slot.modality, config.specific_rank(slot.modality, slot.layer)) for slot in slots}
    if len(ranks) > len(towers):
        raise ValueError(f"rank: got {config.rank!r}, expected one for each tower: that format has one")
    return dict(ranks)


def official_prefix(modality: str, layer: int, target: str) -> str:
    """Where the reference implementation keeps one projection."""
    return f"model.{OFFICIAL_TOWERS[modality]}_model.encoder.layers.{layer}.self_attn.{target}_proj"


def read(path: Path) -> dict[str, Any]:
    """Return the checkpoint's content, without running any code in it."""
    if not path.exists():
        raise FileNotFoundError(f"path: got {path}, expected an existing best_model.pt")
    content = read_pickled(path, LARGEST_CHECKPOINT)
    metadata = content.get("_metadata") if isinstance(content, dict) else None
    if not isinstance(metadata, dict):
        raise ValueError(f"{path}: got {type(content).__name__} without _metadata, expected an official checkpoint")
    absent = [key for key in METADATA if key not in metadata]
    if absent:
        raise ValueError(f"{path}: _metadata lacks {', '.join(absent)}, expected an official checkpoint")
    for key, value in metadata.items():
        if not is_plain(value) and not (isinstance(value, list) and all(map(is_plain, value))):
            raise ValueError(
                f"{path}: _metadata has {shown(key)}, a {type(value).__name__}, expected numbers and texts"
            )
    for name in content:
        if not isinstance(name, str):
            raise ValueError(f"{path}: got the key {shown(name)}, expected names of tensors")
    for name in ("cls_head.weight", "cls_head.bias"):
        if name not in content:
            raise ValueError(f"{path}: got no cls_head.weight and cls_head.bias, expected the classifier")
    return dict(content)


def is_plain(value: object) -> bool:
    """Whether `value` is a number, a text or None."""
    return value is None or isinstance(value, (int, float, str))


def translate(path: Path, content: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[int], tuple[str, ...]]:
    """Return the tensors under our names (common factors still by block index), the blocks and the targets."""
    tensors: dict[str, Tensor] = {}
    layers, targets = set(), set()
    for name, tensor in content.items():
        if shared := SHARED.fullmatch(name):
            layer = int(shared[1] or shared[2])
            key = f"common.{layer}.{'text' if shared[3] == 'A' else 'image'}"
            if key in tensors and not same(tensors[key], tensor):
                raise ValueError(f"{path}: {name} differs from its other copy, expected one shared pair per block")
            tensors[key] = tensor
            layers.add(layer)
        elif (match := PROJECTION.fullmatch(name)) and match[4] in KINDS:
            layers.add(int(match[2]))
            targets.add(match[3])
            kind = KINDS[match[4]]
            row = tensor[0] if kind.endswith("magnitude") and tensor.dim() == 2 and len(tensor) == 1 else tensor
            tensors[f"{TOWERS[match[1]]}.{int(match[2])}.{match[3]}.{kind}"] = row
        else:
            raise ValueError(
                f"{path}: got an unexpected tensor {printable(name)[:200]}, expected those of an official checkpoint"
            )
    if not targets:
        raise ValueError(f"{path}: got no adapted projection, expected an official checkpoint")
    return tensors, sorted(layers), tuple(sorted(targets))


def config_of(
    path: Path, metadata: Mapping[str, Any], layers: list[int], targets: tuple[str, ...], base: MoraConfig
) -> MoraConfig:
    """Return the configuration a checkpoint implies; what it does not record comes from `base`."""
    if layers[-1] - layers[0] + 1 != len(layers):
        raise ValueError(f"{path}: adapts blocks {layers}, expected consecutive ones")
    recorded = {
        "rank": {"image": metadata["vision_rank"], "text": metadata["text_rank"]},
        "common_rank": metadata["shared_rank"],
        "alpha": metadata["alpha"],
        "targets": targets,
        "first_layer": layers[0],
        "variant": "official",
    }
    return config_from(str(path), {**base.to_dict(), **recorded})


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and elements."""
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


def rename(name: str, layers: list[int]) -> str:
    """common.{block index}.{modality} -> common.{position}.{modality}."""
    kind, layer, modality = name.split(".")
    return f"{kind}.{layers.index(int(layer))}.{modality}"
