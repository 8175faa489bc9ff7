"""From a manifest with recordings to the audio tower of the tiny CLIP: features once, training, a file in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mora import tiny
from mora.data.audio import LogMel
from mora.data.dataset import Dataset, compact_json
from mora.data.images import progress
from mora.data.open import open_dataset
from mora.data.sources.drawings import cache_folder
from mora.demo.hearing import Part, Recipe, pretrain
from mora.runs.backbone import AUDIO_WEIGHTS
from mora.system.files import read_json, write_json
from mora.system.machine import cores
from mora.tiny import audio as tiny_audio

MODALITIES = ("image", "text", "audio")


def tower(
    manifest: str | Path, recipe: Recipe, report: Callable[[str], None], folder: Path | None = None, force: bool = False
) -> tuple[Path, dict[str, Any]]:
    """(the file of the audio tower's weights, what was measured): trained on the training part, or found in the cache.

    A tower is trained again for other rows, for another recipe, and with `force`. Where it was found, the file that
    `--backbone tiny-audio` takes by itself is it.

    Raises ValueError for data without recordings; what reading them raises.
    """
    folder = cache_folder() if folder is None else folder
    train, held_out = (open_dataset(manifest, split) for split in ("train", "validation"))
    if lacking := [name for name in MODALITIES if name not in train.modalities]:
        raise ValueError(f"data: got {manifest} without {', '.join(lacking)}, expected image, text and audio")
    path = folder / AUDIO_WEIGHTS
    figures_path = path.with_suffix(".json")
    key = hashlib.sha256(compact_json([train.stamp(), held_out.stamp(), vars(recipe)])).hexdigest()
    if not force and path.is_file() and figures_path.is_file():
        found = read_json(figures_path)
        if found.get("key") == key:
            report(f"audio tower: found in {path}")
            return path, found
    made, figures = pretrain(part_of(train), part_of(held_out), recipe, report)
    tiny_audio.save(made, path)
    write_json(figures_path, {"key": key, **figures})
    report(f"audio tower: {figures['seconds']:.0f} s, written to {path}")
    return path, figures


@torch.no_grad()
def part_of(dataset: Dataset) -> Part:
    """One split as tensors: rows that have all three; a stamp is a picture with its text."""
    present = dataset.present()
    rows = torch.stack([present[name] for name in MODALITIES]).all(dim=0).nonzero().flatten().tolist()
    model, preprocess, tokenizer = tiny.load()
    features = LogMel()

    def read(row: int) -> tuple[Tensor, Tensor, str]:
        given = dataset[row].inputs
        return features(given["audio"]).half(), preprocess(given["image"]), given["text"]

    with ThreadPoolExecutor(cores()) as pool:
        found = list(progress(pool.map(read, rows), len(rows), f"recordings of {dataset.split}"))
    stamps: dict[tuple[str, bytes], int] = {}
    images, texts, place = [], [], []
    for _, image, text in found:
        key = (text.casefold(), image.numpy().tobytes())
        if key not in stamps:
            images.append(image)
            texts.append(text)
        place.append(stamps.setdefault(key, len(stamps)))
    folded = [text.casefold() for text in texts]
    same = torch.tensor([[one == other for other in folded] for one in folded])
    read_texts = normalised(model.encode_text, tokenizer(texts))
    seen = normalised(model.encode_image, torch.stack(images))
    return Part(torch.stack([one for one, _, _ in found]), torch.tensor(place), read_texts, seen, same)


def normalised(encode: Callable[[Tensor], Tensor], inputs: Tensor, batch: int = 128) -> Tensor:
    """Embeddings [N, e] of unit length."""
    return F.normalize(torch.cat([encode(rows) for rows in inputs.split(batch)]), dim=1)
