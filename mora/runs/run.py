"""The run folder: what a training leaves behind, and how a trained classifier comes back from it.

config.json       everything that defines the run: data, backbone, method, recipe, tables, seeds, versions
best/             adapter and head of the best validation epoch: safetensors and JSON
start.safetensors the common factors of MoRA as they were drawn: what says how far they went
checkpoints/      where `--resume` goes on
metrics.jsonl     a line per epoch, for programs; train.log, for people
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mora.adapters.prompts import PromptSize
from mora.adapters.record import adapter_state_dict
from mora.checkpoint import load_adapter, save_adapter
from mora.checkpoint.tensors import check_tensors, check_values, copy_whole, largest_file
from mora.classifier import MissingModalityClassifier
from mora.config import MoraConfig
from mora.heads import LINEAR, SUBSTITUTE
from mora.runs.backbone import Backbone, load_backbone, with_policy
from mora.runs.methods import MORA_VARIANTS, adapt, trained_tensors
from mora.runs.preparing import Preparing
from mora.runs.stored import check_config, check_result
from mora.system.files import digest, pack_tensors, read_json, read_tensors, write_bytes, write_json
from mora.system.folders import whole_folder
from mora.system.messages import shown

if TYPE_CHECKING:
    from PIL.Image import Image

FORMAT = 1
CONFIG, BEST, CHECKPOINTS, METRICS, LOG = "config.json", "best", "checkpoints", "metrics.jsonl", "train.log"
START = "start.safetensors"
HEAD, RESULT, METHOD, METHOD_WEIGHTS = "head.safetensors", "result.json", "method.json", "method.safetensors"


@dataclass(frozen=True)
class LoadedRun:
    """A trained classifier and what is needed to use it.

    Attributes:
        model: in eval mode, adapters and head of the best validation epoch in place.
        preprocess: a PIL image to float32 [3, H, W].
        tokenize: texts to int64 [B, L], under the run's token policy.
        preparing: how a row of any modalities is prepared for the towers of `model`.
        config: the content of config.json.
        classes: names, in the order of the logits.
        metric: "accuracy", "macro_f1" or "auroc".
        multi_label: whether a row may have several classes.
        method: one of `mora.runs.methods.METHODS`.
        data: config["data"]: source, name, rows and fingerprints.
        result: epoch and validation metrics of the best epoch.
        backbone: the CLIP inside `model`, and its name and weights.
        folder: where it came from.
    """

    model: MissingModalityClassifier
    preprocess: Callable[[Image], Tensor]
    tokenize: Callable[[Sequence[str]], Tensor]
    config: dict[str, Any]
    classes: tuple[str, ...]
    metric: str
    multi_label: bool
    method: str
    data: dict[str, Any]
    result: dict[str, Any]
    backbone: Backbone
    folder: Path
    preparing: Preparing

    @property
    def data_options(self) -> dict[str, Any]:
        """The arguments of `open_dataset` that decided what the rows, classes and metric of the run are."""
        if options := self.data.get("options"):
            return dict(options)
        train = self.config["train"]
        return {
            "name": train.get("data_name"),
            "metric": train.get("metric"),
            "seed": train.get("split_seed", 0),
            "extra_columns": train.get("extra_columns", False),
        }

    @property
    def mora_config(self) -> MoraConfig:
        """Ranks, targets and blocks of the method."""
        return MoraConfig.from_dict(self.config["mora"])


def load_run(
    folder: str | os.PathLike[str], device: str | torch.device = "cpu", backbone: Backbone | None = None
) -> LoadedRun:
    """Load the best epoch of a run.

    Args:
        folder: what `mora train --out` wrote.
        device: where the model is put.
        backbone: the untouched CLIP, for runs on one of your own; None loads it by the name in config.json.

    Raises:
        FileNotFoundError: no run there, or none with a finished epoch.
        ValueError: a damaged or foreign file, or other backbone weights than those trained on; the message names it.
    """
    folder = Path(folder)
    config = read_config(folder)
    best = folder / BEST
    if not (best / RESULT).is_file():
        raise FileNotFoundError(f"model: {folder} has no finished epoch ({BEST}/{RESULT}), expected a trained run")
    result = read_json(best / RESULT)
    check_result(str(best / RESULT), result)
    given = config["backbone"]
    backbone = load_backbone(given["name"], given["pretrained"]) if backbone is None else backbone
    if backbone.fingerprint() != given["sha256"]:
        raise ValueError(
            f"backbone: the weights of {backbone.name!r} are not those {folder} was trained on (their SHA-256 "
            "differs), expected the same"
        )
    data = config["data"]
    tokenize = with_policy(backbone.tokenizer, config["token_policy"], backbone.empty_text)
    preparing = backbone.preparing(tokenize)
    model = MissingModalityClassifier(
        backbone.model,
        len(data["classes"]),
        missing=preparing.missing,
        head=config.get("head", LINEAR),
        missing_embedding=config.get("missing_embedding", SUBSTITUTE),
    )
    size = PromptSize(**config.get("prompts", {}))
    load_best(best, model, config["method"], MoraConfig.from_dict(config["mora"]), config["lora_scale"], size)
    return LoadedRun(
        model=model.to(device).eval(),
        preprocess=backbone.preprocess,
        tokenize=tokenize,
        config=config,
        classes=tuple(data["classes"]),
        metric=data["metric"],
        multi_label=data["multi_label"],
        method=config["method"],
        data=data,
        result=result,
        backbone=backbone,
        folder=folder,
        preparing=preparing,
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The checked content of config.json; FileNotFoundError where there is none, ValueError for another format."""
    path = folder / CONFIG
    if not path.is_file():
        there = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else "no such folder"
        raise FileNotFoundError(f"model: got {folder} ({there}), expected a run folder of mora train, with {CONFIG}")
    config = read_json(path)
    if config.get("format") != FORMAT:
        raise ValueError(f"{path}: got format {shown(config.get('format'))}, expected {FORMAT}")
    check_config(str(path), config)
    return config


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write config.json."""
    write_json(folder / CONFIG, {"format": FORMAT, **config})


def save_best(
    folder: Path, model: MissingModalityClassifier, method: str, config: MoraConfig, result: Mapping[str, Any]
) -> None:
    """Write adapter, head and result into `folder`, which appears, or is replaced, as a whole.

    MoRA's adapters are those of `mora.save_adapter`; what other methods train is method.safetensors with method.json.
    Raises ValueError for what `load_best` would refuse, NaN or infinity; `folder` stays as it was.
    """
    head = {f"head.{name}": tensor for name, tensor in model.head_state().items()}
    check_values(str(folder), {**trained_tensors(model.model, method), **head})
    with whole_folder(folder) as work:
        if method in MORA_VARIANTS:
            save_adapter(model.model, work)
        else:
            weights = pack_tensors(trained_tensors(model.model, method), {"format": f"mora-{method}"})
            write_bytes(work / METHOD_WEIGHTS, weights)
            content = {"format": FORMAT, "method": method, "config": config.to_dict(), "sha256": digest(weights)}
            write_json(work / METHOD, content)
        write_bytes(work / HEAD, pack_tensors(model.head_state(), {"format": "mora-head"}))
        write_json(work / RESULT, result)


def save_start(folder: Path, model: nn.Module, method: str) -> None:
    """Write what the start of a run's adapters cannot be known from: the common factors, as they were drawn.

    B starts at zero, magnitudes at the weight's column norms, and A is of no effect then. Methods whose start is the
    pretrained model have nothing to write. 40 KB for ViT-B/16 at rank 4 in two layers.
    """
    if method in MORA_VARIANTS:
        drawn = {name: t for name, t in adapter_state_dict(model).items() if name.startswith("common.")}
        write_bytes(folder / START, pack_tensors(drawn, {"format": "mora-start"}))


def read_start(folder: Path, model: nn.Module) -> dict[str, Tensor] | None:
    """The common factors that a run's adapters started with; None where an earlier version kept none.

    Raises ValueError for a file that does not fit the adapters of `model`.
    """
    if not (folder / START).is_file():
        return None
    named = adapter_state_dict(model).items()
    shapes = shapes_of({name: tensor for name, tensor in named if name.startswith("common.")})
    tensors, _ = read_tensors(folder / START, largest_file(shapes))
    check_tensors(str(folder / START), tensors, shapes)
    return tensors


def load_best(
    folder: Path,
    model: MissingModalityClassifier,
    method: str,
    config: MoraConfig,
    lora_scale: float,
    prompts: PromptSize = PromptSize(),  # noqa: B008 # immutable
) -> None:
    """Adapt `model` in place as `method` does and put the tensors that `save_best` wrote into it; strict.

    The backbone is not looked at: see `load_run`. Raises ValueError when a training replaced the folder meanwhile:
    adapter and head would be of two epochs.
    """
    began = folder.stat().st_ino
    if method in MORA_VARIANTS:
        load_adapter(model.model, folder, base="any")  # the SHA-256 of the whole backbone says more
    else:
        saved = read_json(folder / METHOD)
        if saved.get("method") != method:
            raise ValueError(
                f"{folder / METHOD}: method {shown(saved.get('method'))}, expected {method!r}, as in {CONFIG}"
            )
        adapt(model.model, method, config, lora_scale, prompts)
        targets = trained_tensors(model.model, method)
        tensors, found = read_tensors(folder / METHOD_WEIGHTS, largest_file(shapes_of(targets)))
        if found != saved.get("sha256"):
            raise ValueError(f"{folder / METHOD_WEIGHTS}: its SHA-256 is not the one in {METHOD}, expected one save")
        copy_strictly(folder / METHOD_WEIGHTS, tensors, targets)
    head, _ = read_tensors(folder / HEAD, largest_file(shapes_of(model.head_state())))
    copy_strictly(folder / HEAD, head, model.head_state())
    if folder.stat().st_ino != began:
        raise ValueError(f"{folder}: a training replaced it while it was read, expected one epoch's files: try again")


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor, by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@torch.no_grad()
def copy_strictly(path: Path, tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
    """Copy tensors read from `path` into `targets`; ValueError, before anything changes, unless they fit exactly."""
    check_tensors(str(path), tensors, shapes_of(targets))
    copy_whole(str(path), tensors, targets)
