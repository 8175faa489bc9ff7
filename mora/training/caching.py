"""Rows past the frozen blocks for a training: whether they are kept, where, and batches made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mora.classifier import MissingModalityClassifier
from mora.data.dataset import Dataset
from mora.data.modalities import modality as known
from mora.data.sources.drawings import cache_folder
from mora.data.views import Corrupted
from mora.runs.preparing import Preparing
from mora.savings.cache import PrefixCache
from mora.savings.determinism import why_random
from mora.savings.encoder import refusal
from mora.savings.fingerprint import sample_parts
from mora.savings.options import Hidden
from mora.training.batches import Inputs
from mora.training.config import TrainConfig
from mora.training.log import Log
from mora.training.setup import Split

FOLDER = "prefixes"
DTYPES = {"exact": None, "float16": torch.float16, "bfloat16": torch.bfloat16}
FILLED = 32  # samples at a time: rows do not depend on the batch that asks for them, nor on when a run was resumed
# The test split passes once.
SPLITS = ("train", "validation")


class CachedInputs(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Batches of samples past the frozen blocks: no image is decoded, no text tokenized.

    Args:
        cache: rows of a split.
        inputs: the same split; what each sample lacks comes from there.
    """

    def __init__(self, cache: PrefixCache, inputs: Inputs) -> None:
        self.cache: PrefixCache | None = cache
        self.labels = inputs.dataset.labels()
        self.stores, self.place, self.present = cache.stores, cache.place, cache.present
        self.multiples = {modality: cache.multiple(modality) for modality in cache.stores}
        self.in_memory = cache.folder is None
        self.there = inputs.present.by_modality()

    def __getstate__(self) -> dict[str, Any]:
        return {
            **vars(self),
            "cache": None,
        }  # a worker that is not forked reads rows that are there; no model goes along

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, modality: str, index: Tensor, present: Tensor) -> Hidden:
        """Rows of one modality; where `present` is False, the substitute's."""
        if self.cache is not None:
            return self.cache.unchecked(modality, index, present)
        store = self.stores[modality]
        rows = self.place[modality][index].masked_fill(
            ~(present & self.present[modality][index]), store.layout.rows - 1
        )
        if not bool(store.complete(rows).all()):
            raise ValueError("cache: a row is not there, expected all of them before a worker process reads")
        return replace(store.read(rows, self.multiples[modality]), filled=True)

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """One batch: of each modality rows (image_rows), tokens where it has some, and flags; label and index."""
        index = torch.tensor(rows)
        if self.cache is not None:
            self.cache.check()
        batch = {"label": self.labels[index], "index": index}
        for modality, there in self.there.items():
            taken = self.take(modality, index, there[index])
            batch |= {f"{modality}_rows": taken.rows, f"{modality}_present": there[index]}
            if taken.tokens is not None:
                batch[f"{modality}_tokens"] = taken.tokens
        return batch


def why_not(config: TrainConfig, model: MissingModalityClassifier, preparing: Preparing) -> str:
    """Why no rows are kept, in words; "" when they are. ValueError where they were asked for by name."""
    if config.cache == "off":
        return "off"
    if config.epochs == 1 and config.cache == "auto" and config.cache_folder is None:
        return "one epoch reads every row once"
    reason = refusal(model) or (why_random(preparing.preprocess) if "image" in model.towers else "")
    for name, step in () if reason else preparing.others.items():
        reason = reason or why_random(step, known(name))
    if reason and config.cache != "auto":
        raise ValueError(f"cache: got {config.cache!r}, expected 'off' or 'auto': {reason}")
    return reason


def make_caches(
    config: TrainConfig, model: MissingModalityClassifier, splits: Mapping[str, Split], processes: int
) -> tuple[dict[str, PrefixCache], str]:
    """(a cache by split, why there is none): in memory where that is enough for all, else in files.

    With a folder of one's own, which other runs may share, files come first.

    Raises ValueError when they do not fit where they were asked for.
    """
    auto = ("memory", "disk") if config.cache_folder is None else ("disk", "memory")
    kinds = {"auto": auto if processes == 1 else ("disk",)}.get(config.cache, (config.cache,))
    reasons = []
    for kind in kinds:
        caches: dict[str, PrefixCache] = {}
        try:
            for split in SPLITS:
                caches[split] = make_cache(config, model, splits[split], kind, sum(c.size for c in caches.values()))
        except ValueError as error:
            if config.cache != "auto":
                raise
            reasons.append(str(error).removeprefix("cache: "))
            continue
        return caches, ""
    return {}, "; ".join(reasons)


def make_cache(
    config: TrainConfig, model: MissingModalityClassifier, split: Split, kind: str, taken: int
) -> PrefixCache:
    """The cache of one split; on disk it holds what the data has, whatever this run's missing table takes away."""
    inputs = split.inputs
    present = inputs.present if kind == "memory" else inputs.dataset.present().of_towers(model.towers)
    place: dict[str, Any] = {}
    if kind == "disk":
        folder = cache_folder() / FOLDER if config.cache_folder is None else Path(config.cache_folder)
        given = inputs.preparing
        parts = sample_parts(inputs.dataset, given.preprocess, given.tokenize, given.others)
        place = {"folder": folder, "parts": parts}
    return PrefixCache(
        model,
        inputs.having(present),
        present=present.by_modality(),
        rows={"image": rows_of_images(inputs.dataset)},
        dtype=DTYPES[config.cache_dtype],
        cap=None if config.cache_gb is None else max(0, int(config.cache_gb * 1e9) - taken),
        **place,
    )


def rows_of_images(dataset: Dataset) -> Tensor | None:
    """Which image each sample shows, where several show one; corruption makes every sample's image its own."""
    return None if isinstance(dataset, Corrupted) else dataset.groups()


def keep_rows(
    config: TrainConfig,
    model: MissingModalityClassifier,
    splits: Mapping[str, Split],
    processes: int,
    workers: int,
    log: Log,
) -> dict[str, PrefixCache]:
    """Compute what the frozen blocks give once for all epochs, and say what is saved, what is not and why."""
    reason = why_not(config, model, splits["train"].inputs.preparing)
    caches: dict[str, PrefixCache] = {}
    if not reason:
        caches, reason = make_caches(config, model, splits, processes)
    for line in model.saved():
        log.say(f"savings ({config.savings}): {line}")
    for split, cache in caches.items():
        log.say(f"cache, {split}: {cache}")
    for split, cache in caches.items():
        with log.filling(f"frozen blocks, {split}", len(cache)) as advance:
            cache.fill(FILLED, workers, advance)
    if reason:
        log.say(f"cache: none: {reason}")
    return caches
