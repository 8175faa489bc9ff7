"""The reference implementation's checkpoint, `best_model.pt`: its names, both ways.

Its modality "vision" is "image" here, `shared_A` is the text factor and `shared_B` the vision factor of a block,
`modality_A`, `modality_B` are A and B, and magnitudes are stored [1, d]. The shared pair stands under the first adapted
projection of the text block in the order k, v, q, out, in which the attention module there registers its children.
"""

from __future__ import annotations

import io
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mora.adapters import adapter_state_dict, adapters_of, is_patched
from mora.checkpoint.tensors import assign, check_same_adapters, check_tensors, expected_shapes
from mora.config import MoraConfig
from mora.families import family_of
from mora.patch import check_pairs, pair_blocks, patch
from mora.system.files import write_bytes

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
PROJECTION = re.compile(r"model\.(vision|text)_model\.encoder\.layers\.(\d+)\.self_attn\.(q|k|v|out)_proj\.(\w+)")
SHARED = re.compile(
    r"(?:model\.(?:vision|text)_model\.encoder\.layers\.(\d+)\.self_attn\.\w+_proj\.shared_params"
    r"|shared_params_dict\.layer_(\d+))\.shared_([AB])"
)
METADATA = ("num_classes", "shared_rank", "vision_rank", "text_rank", "alpha")


def load_official(model: nn.Module, path: str | os.PathLike[str]) -> tuple[Tensor, Tensor]:
    """Load the reference implementation's `best_model.pt` and return the classifier's (weight [C, 2e], bias [C]).

    An unpatched model is patched first, with what the file implies (dropout at its default). The file is read by
    `torch.load(weights_only=True)`: it cannot run code.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not such a checkpoint; another rank, alpha, target, layer or width than the patched model's; a
            missing or extra tensor. The message names it, and the model is as it was.
    """
    path = Path(path)
    content = read(path)
    metadata = content.pop("_metadata")
    head = {name: content.pop(f"cls_head.{name}", None) for name in ("weight", "bias")}
    if head["weight"] is None or head["bias"] is None:
        raise ValueError(f"{path}: got no cls_head.weight and cls_head.bias, expected the classifier")
    tensors, layers, targets = translate(path, content)
    patched = is_patched(model)
    config = adapters_of(model).config if patched else MoraConfig()
    theirs = config_of(path, metadata, layers, targets, replace(config, first_layer=layers[0]))
    if patched:
        check_same_adapters(str(path), theirs, config)
        pairs = adapters_of(model).pairs
    else:
        pairs = pair_blocks(family_of(model).towers(model), theirs)
        check_pairs(pairs, theirs)
    adapted = {site.layer for pair in pairs for site in pair.values()}
    if adapted != set(layers):
        raise ValueError(f"layers: {path} adapts {layers}, the model {sorted(adapted)}: expected the same blocks")
    tensors = {name if not name.startswith("common") else rename(name, layers): t for name, t in tensors.items()}
    check_tensors(str(path), tensors, expected_shapes(pairs, theirs))
    if not patched:
        patch(model, theirs)
    assign(adapters_of(model), tensors)
    return head["weight"], head["bias"]


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

    Raises ValueError when the model is not patched, or what is adapted has no place in that format.
    """
    adapters = adapters_of(model)
    config = adapters.config
    if config.variant != "official":
        raise ValueError(f"model: got variant {config.variant!r}, expected 'official': that format has no other")
    if any(len({site.layer for site in pair.values()}) > 1 for pair in adapters.pairs):
        raise ValueError("model: got towers paired at different block indices, expected the same: that format has one")
    weight, bias = (classifier.weight, classifier.bias) if isinstance(classifier, nn.Linear) else classifier
    content: dict[str, Any] = {}
    ours = adapter_state_dict(model)
    first = next(target for target in REGISTRATION_ORDER if target in config.targets)
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
    content = {name: tensor.cpu().clone() for name, tensor in content.items()}
    content["_metadata"] = {
        "backbone_name": backbone_name,
        "num_classes": weight.shape[0],
        "shared_rank": config.shared_rank,
        "vision_rank": config.specific_rank("image"),
        "text_rank": config.specific_rank("text"),
        "alpha": float(config.alpha),
        "merged_layers": [],
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue())
    return path


def official_prefix(modality: str, layer: int, target: str) -> str:
    """Where the reference implementation keeps one projection."""
    return f"model.{OFFICIAL_TOWERS[modality]}_model.encoder.layers.{layer}.self_attn.{target}_proj"


def read(path: Path) -> dict[str, Any]:
    """Return the checkpoint's content, without running any code in it."""
    if not path.is_file():
        raise FileNotFoundError(f"path: got {path}, expected an existing best_model.pt")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: got a file that torch.load(weights_only=True) refuses: {error}") from error
    metadata = content.get("_metadata") if isinstance(content, dict) else None
    if not isinstance(metadata, dict):
        raise ValueError(f"{path}: got {type(content).__name__} without _metadata, expected an official checkpoint")
    absent = [key for key in METADATA if key not in metadata]
    if absent:
        raise ValueError(f"{path}: _metadata lacks {', '.join(absent)}, expected an official checkpoint")
    return dict(content)


def translate(path: Path, content: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[int], tuple[str, ...]]:
    """Return the tensors under our names (common factors still by block index), the blocks and the targets."""
    tensors: dict[str, Tensor] = {}
    layers, targets = set(), set()
    for name, tensor in content.items():
        if shared := SHARED.fullmatch(name):
            layer = int(shared[1] or shared[2])
            key = f"common.{layer}.{'text' if shared[3] == 'A' else 'image'}"
            if key in tensors and not torch.equal(tensors[key], tensor):
                raise ValueError(f"{path}: {name} differs from its other copy, expected one shared pair per block")
            tensors[key] = tensor
            layers.add(layer)
        elif (match := PROJECTION.fullmatch(name)) and match[4] in KINDS:
            layers.add(int(match[2]))
            targets.add(match[3])
            kind = KINDS[match[4]]
            row = tensor[0] if kind.endswith("magnitude") and tensor.dim() == 2 else tensor
            tensors[f"{TOWERS[match[1]]}.{int(match[2])}.{match[3]}.{kind}"] = row
        else:
            raise ValueError(f"{path}: got an unexpected tensor {name}, expected those of an official checkpoint")
    if not targets:
        raise ValueError(f"{path}: got no adapted projection, expected an official checkpoint")
    return tensors, sorted(layers), tuple(sorted(targets))


def config_of(
    path: Path, metadata: Mapping[str, Any], layers: list[int], targets: tuple[str, ...], base: MoraConfig
) -> MoraConfig:
    """Return the configuration a checkpoint implies; what it does not record comes from `base`."""
    if layers != list(range(layers[0], layers[-1] + 1)):
        raise ValueError(f"{path}: adapts blocks {layers}, expected consecutive ones")
    return replace(
        base,
        rank={"image": metadata["vision_rank"], "text": metadata["text_rank"]},
        common_rank=metadata["shared_rank"],
        alpha=metadata["alpha"],
        targets=targets,
        first_layer=layers[0],
        variant="official",
    )


def rename(name: str, layers: list[int]) -> str:
    """common.{block index}.{modality} -> common.{position}.{modality}."""
    kind, layer, modality = name.split(".")
    return f"{kind}.{layers.index(int(layer))}.{modality}"
