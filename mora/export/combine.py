"""Fold a weighted sum of saved adapters into a plain CLIP, written for other libraries and proven equal."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mora.checkpoint import load_adapter
from mora.checkpoint.shelf import adapters_in, chosen
from mora.export.formats import FORMATS, OPEN_CLIP, READERS, WRITERS
from mora.export.merge import PROBES, TOLERANCE
from mora.named import combine
from mora.named.arithmetic import checked
from mora.runs.backbone import TINY, load_backbone
from mora.runs.run import CONFIG, read_config
from mora.system.checks import one_of
from mora.system.files import write_json
from mora.system.folders import remove_leftovers, whole_folder
from mora.system.lock import FolderLock
from mora.towers import towers_of
from mora.version import __version__

ABOUT = "combined.json"


def combine_saved(
    folder: str | os.PathLike[str],
    weights: Mapping[str, float],
    out: str | os.PathLike[str],
    backbone: str | None = None,
    pretrained: str | None = None,
    format: str = OPEN_CLIP,
) -> dict[str, Any]:
    """Write W + sum of w_i (W_i - W), `mora.combine`, of adapters in a folder as a plain checkpoint.

    What was written is loaded again without mora, and its embeddings are compared. The folder appears as a whole.

    Args:
        folder: adapters in folders of their names, one adapter, or a run of `mora train`.
        weights: a finite number for each adapter that takes part.
        out: folder to make; an earlier result of this function is replaced.
        backbone, pretrained: the CLIP that they were trained on, as `mora train` takes them; its weights are compared
            with those that the adapters know. None: that of the run, else "tiny".
        format: "open_clip" or "hugging_face".

    Returns:
        the content of combined.json: weights, SHA-256 of each adapter, backbone, largest difference.

    Raises:
        ValueError: an unknown adapter, other base weights, no such form of the model, or `out` holds something else.
        OSError: no adapter there, or `out` cannot be written.
    """
    one_of("format", format, FORMATS)
    found, place = adapters_in(folder), Path(os.path.abspath(out))
    parts = {name: (chosen(found, name, "weights"), weight) for name, weight in checked(weights)}
    if place.is_dir() and any(place.iterdir()) and not (place / ABOUT).is_file():
        raise ValueError(f"out: got {out}, which holds other files, expected a new or empty folder")
    if place.exists() and not place.is_dir():
        raise ValueError(f"out: got {out}, which is a file, expected a folder")
    if backbone is None:
        backbone, pretrained = backbone_of(Path(folder), pretrained)
    loaded = load_backbone(backbone, pretrained)
    for name, (one, _) in parts.items():
        load_adapter(loaded.model, one.folder, name=name)
    plain = combine(loaded.model, {name: weight for name, (_, weight) in parts.items()})
    about: dict[str, Any] = {
        "format": 1,
        "library": format,
        "weights": {name: weight for name, (_, weight) in parts.items()},
        "adapters": {name: {"sha256": one.sha256, "config": one.config.to_dict()} for name, (one, _) in parts.items()},
        "backbone": {"name": backbone, "pretrained": pretrained},
        "mora_version": __version__,
    }
    with FolderLock.beside(place):
        remove_leftovers(place.parent, place.name)
        with whole_folder(place) as work:
            WRITERS[format](work, plain, loaded)
            about["max_difference"] = difference(plain, READERS[format](work, loaded).model)
            write_json(work / ABOUT, about)
    return about


def backbone_of(folder: Path, pretrained: str | None) -> tuple[str, str | None]:
    """Name and weights of the CLIP that a run was trained on; of other folders, the built-in one."""
    if not (folder / CONFIG).is_file():
        return TINY, pretrained
    given = read_config(folder)["backbone"]
    return given["name"], given["pretrained"] if pretrained is None else pretrained


@torch.no_grad()
def difference(plain: nn.Module, again: nn.Module) -> float:
    """The largest difference of embeddings of random inputs; ValueError for one that is no rounding."""
    worst = 0.0
    for (name, tower), other in zip(towers_of(plain).items(), towers_of(again).values(), strict=True):
        inputs = tower.random(plain, PROBES, torch.Generator().manual_seed(0))
        wanted: Tensor = tower.encode(plain, inputs)
        apart = float((other.encode(again, inputs) - wanted).abs().max())
        if not apart <= TOLERANCE * max(1.0, float(wanted.abs().max())):
            raise ValueError(
                f"combine: embeddings of the {name} tower differ by {apart:.2e} when loaded again, expected "
                f"at most {TOLERANCE:g} of the largest: nothing was written"
            )
        worst = max(worst, apart)
    return worst
