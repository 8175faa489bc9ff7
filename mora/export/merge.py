"""Fold a trained run into a plain CLIP and its head, written for other libraries, proven equal, described."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mora.checkpoint.tensors import check_tensors, largest_file
from mora.classifier import MissingModalityClassifier
from mora.data.presence import PAIR
from mora.export import card
from mora.export.formats import FORMATS, OPEN_CLIP, OWN, READERS, WRITERS
from mora.heads import NONE
from mora.metrics import THRESHOLD
from mora.patterns import patterns_of
from mora.runs.backbone import Backbone
from mora.runs.methods import fold
from mora.runs.run import RESULT, LoadedRun, load_run
from mora.runs.stored import each, is_figures
from mora.system.checks import one_of
from mora.system.files import pack_tensors, read_json, read_tensors, write_bytes, write_json
from mora.system.folders import remove_leftovers, whole_folder
from mora.system.lock import FolderLock
from mora.version import __version__

HEAD, ABOUT, CARD = "classifier.safetensors", "classifier.json", "README.md"
PROBES = 8
# Largest difference of logits, merged against adapted, as a share of the largest logit (or of 1, if that is smaller).
TOLERANCE = 1e-4


def merge_run(
    model: str | os.PathLike[str] | LoadedRun, out: str | os.PathLike[str], format: str = OPEN_CLIP
) -> dict[str, Any]:
    """Write a run as a plain checkpoint that loads without mora, with its head and a model card.

    What was written is loaded again as the card says and compared with the adapted model on random inputs, complete
    and with every subset of the modalities missing. The folder appears as a whole, and only if they agree.

    Args:
        model: a run folder of `mora train`, or a loaded run, whose model is folded in place.
        out: folder to make; an earlier result of this function is replaced.
        format: "open_clip" or "hugging_face" (`transformers.CLIPModel`); a model with other towers than image and text
            is written as its state_dict, "state_dict", for whoever has its code.

    Returns:
        what `classifier.json` says of the comparison: largest difference, largest logit, predictions that change.

    Raises:
        ValueError: no such form of this model; merged and adapted logits differ; `out` holds something else.
        OSError: no run there, or `out` cannot be written.
    """
    one_of("format", format, FORMATS)
    folder = Path(os.path.abspath(out))
    check_free(Path(out))
    with FolderLock.beside(folder):
        remove_leftovers(folder.parent, folder.name)
        return merge_into(folder, model, format)


def merge_into(folder: Path, model: str | os.PathLike[str] | LoadedRun, format: str) -> dict[str, Any]:
    """Do it, in a folder that nobody else writes."""
    run = model if isinstance(model, LoadedRun) else load_run(model)
    format = OWN if set(run.model.towers) != set(PAIR) and format == OPEN_CLIP else format
    inputs = probes(run.model)
    adapted = patterns(run.model, inputs)
    plain = fold(run.model.model, run.method, run.mora_config)
    with whole_folder(folder) as work:
        found = write_plain(work, plain, run.model, run.backbone, format, adapted, inputs)
        about = description(run, format, found)
        write_json(work / ABOUT, about)
        write_bytes(work / CARD, card.model_card(run, about).encode())
    return found


def check_free(folder: Path) -> None:
    """Raise ValueError unless `folder` is absent, empty, or was written by `merge_run`."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out: got {folder}, which is a file, expected a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / ABOUT).is_file():
        raise ValueError(f"out: got {folder}, which holds other files, expected a new or empty folder")


def write_plain(
    folder: Path,
    plain: nn.Module,
    classifier: MissingModalityClassifier,
    backbone: Backbone,
    format: str,
    adapted: Tensor,
    inputs: Mapping[str, Tensor],
) -> dict[str, Any]:
    """Write model and head, load them again, and return how far their logits are from `adapted`.

    Raises ValueError when they are farther than `TOLERANCE` allows.
    """
    WRITERS[format](folder, plain, backbone)
    if classifier.head_kind != NONE:
        write_bytes(folder / HEAD, pack_tensors(classifier.head_state(), {"format": "pt"}))
    again = read_again(folder, classifier, backbone, format)
    again.load_head(classifier.head_state())
    logits = patterns(again, {name: given.cpu() for name, given in inputs.items()})
    found = {
        "max_difference": float((logits - adapted).abs().max()),
        "max_logit": float(adapted.abs().max()),
        "changed_predictions": int((logits.argmax(-1) != adapted.argmax(-1)).sum()),
        "rows": len(adapted),
    }
    if not found["max_difference"] <= TOLERANCE * max(1.0, found["max_logit"]):
        raise ValueError(
            f"merge: logits of the merged model differ by {found['max_difference']:.2e} from the adapted one's "
            f"(largest logit {found['max_logit']:.2e}), expected at most {TOLERANCE:g} of it: nothing was written"
        )
    return found


def read_again(
    folder: Path, classifier: MissingModalityClassifier, backbone: Backbone, format: str
) -> MissingModalityClassifier:
    """The plain model that `folder` holds, in a classifier like `classifier`, whose head is not loaded yet."""
    loaded = READERS[format](folder, backbone)
    return MissingModalityClassifier(
        loaded.model,
        classifier.num_classes,
        missing=loaded.missing,
        head=classifier.head_kind,
        missing_embedding=classifier.missing_embedding,
    ).eval()


def read_plain(folder: Path, run: LoadedRun, format: str = OPEN_CLIP) -> MissingModalityClassifier:
    """What `merge_run` wrote into `folder` for a run: the plain CLIP with its head, as the model card loads them.

    Raises ValueError for files that do not fit the run.
    """
    again = read_again(folder, run.model, run.backbone, format)
    shapes = {name: tuple(tensor.shape) for name, tensor in run.model.head_state().items()}
    if run.model.head_kind == NONE:
        return again
    tensors, _ = read_tensors(folder / HEAD, largest_file(shapes))
    check_tensors(str(folder / HEAD), tensors, shapes)
    again.load_head(tensors)
    return again


def probes(model: MissingModalityClassifier) -> dict[str, Tensor]:
    """Random inputs of every tower, such as images [8, 3, H, W] and texts [8, L], always the same."""
    device = model.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = {modality: tower.random(model.model, PROBES) for modality, tower in model.towers.items()}
    return {modality: inputs.to(device) for modality, inputs in drawn.items()}


@torch.no_grad()
def patterns(model: MissingModalityClassifier, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits of complete rows and of rows of every other presence pattern, [P B, C], on the CPU."""
    model.eval()
    each = reversed(patterns_of(inputs))
    return torch.cat([model(inputs={name: inputs[name] for name in pattern}) for pattern in each]).float().cpu()


def description(run: LoadedRun, format: str, found: dict[str, Any]) -> dict[str, Any]:
    """The content of classifier.json: what is needed to use the model, and where it comes from."""
    finished = read_json(run.folder / RESULT) if (run.folder / RESULT).is_file() else {}
    apart = finished.get("patterns", {})
    here = ("out", "cache_folder")  # of this machine
    training = {name: value for name, value in run.config.get("train", {}).items() if name not in here}
    return {
        "format": 1,
        "library": format,
        "classes": list(run.classes),
        "multi_label": run.multi_label,
        "threshold": THRESHOLD if run.multi_label else None,
        "metric": run.metric,
        "features": f"[{'; '.join(f'{name} embedding' for name in run.model.towers)}], projected, not normalised",
        "head": run.model.head_kind,
        "patterns": [list(pattern) for pattern in patterns_of(run.model.towers)],
        "missing_embedding": run.model.missing_embedding,
        "missing_image": "a white image",
        "missing_text": "",
        "token_policy": run.config["token_policy"],
        "best_epoch": run.result.get("epoch"),
        "validation": run.result.get("validation", {}),
        "test": finished.get("test"),
        "by_pattern": apart if each(each(is_figures))(apart) else {},
        "merged_against_adapted": found,
        "mora_version": __version__,
        "run": {**run.config, "train": training},
    }
