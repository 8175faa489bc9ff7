"""Missing tables of data sets: drawn from a seed, and kept in files that know what they were made from and for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mora.data.dataset import SPLITS, Dataset
from mora.data.missing import COMPLETE, IMAGE_MISSING, TEXT_MISSING, combine_missing, missing_table
from mora.data.published import split_name
from mora.data.views import Subset
from mora.system.files import digest, pack_tensors, write_bytes

FORMAT = "mora missing table 1"
# A seed's offset in each split, so that no two splits draw alike.
TABLE_SEEDS = {"train": 0, "validation": 1000, "test": 2000, "all": 3000}
Specification = TypeVar("Specification")
FORM = "KIND:RATE or KIND:RATE:SHARE, such as both:0.7, text:0.5, both:0.7:0.25, or none"


@dataclass(frozen=True)
class Missing:
    """What to take away: `rate` counts the rows that lose a modality, `both_ratio` those of them that lose the image.

    `kind` is `"text"`, `"image"` or `"both"`; `both_ratio` matters under `"both"` only. The default takes nothing.
    """

    kind: str = "both"
    rate: float = 0.0
    both_ratio: float = 0.5

    def __post_init__(self) -> None:
        missing_table(0, self.rate, self.kind, 0, self.both_ratio)  # checks its arguments

    @classmethod
    def parse(cls, text: str) -> Missing:
        """`"both:0.7"`, `"both:0.7:0.25"` or `"none"`; ValueError for anything else."""
        if text == "none":
            return cls()
        kind, *numbers = text.split(":")
        try:
            values = [float(number) for number in numbers]
        except ValueError:
            values = []
        if not 1 <= len(values) <= 2:
            raise ValueError(f"missing: got {text!r}, expected {FORM}")
        return cls(kind, *values)

    def __str__(self) -> str:
        if self.rate == 0:
            return "none"
        share = f":{self.both_ratio:g}" if self.kind == "both" and self.both_ratio != 0.5 else ""
        return f"{self.kind}:{self.rate:g}{share}"


def parse_missing(given: object) -> dict[str, Missing]:
    """What each split lacks: `"both:0.7"` for all three, or as `by_split` takes it, others complete."""
    return by_split(given, Missing.parse)


def by_split(given: object, read: Callable[[Any], Specification]) -> dict[str, Specification]:
    """One specification for every split, each as `read` reads it.

    Args:
        given: one for all splits; `"train=both:0.7,test=image:0.9"`, where the others are `"none"`; or a mapping. A
            split may be called as files call it, `"dev"`.
        read: raises ValueError for a specification of another form.

    Raises:
        ValueError: an unknown split, or one that comes twice.
    """
    if isinstance(given, str):
        if "=" not in given or Path(given).is_file():
            return dict.fromkeys(SPLITS, read(given.strip()))
        pairs = [part.partition("=") for part in given.split(",")]
        named = {split.strip(): specification.strip() for split, _, specification in pairs}
        if len(named) < len(pairs):
            raise ValueError(f"missing: got {given!r}, expected each split once")
        given = named
    if not isinstance(given, Mapping):
        raise ValueError(f"missing: got {given!r}, expected 'both:0.7', 'train=both:0.7,test=image:0.5' or a mapping")
    found: dict[str, object] = {}
    for word, specification in given.items():
        split = split_name(str(word))
        if split is None or split in found:
            raise ValueError(f"missing: got {word!r}, expected each of {', '.join(map(repr, SPLITS))} at most once")
        found[split] = specification
    return {split: read(found.get(split, "none")) for split in SPLITS}


@dataclass(frozen=True)
class MissingTable:
    """`values` float32 [rows], see `missing_table`, and what they were made from and for.

    `seed` and `fingerprint` are None for the published files, which do not tell them.
    """

    values: Tensor
    missing: Missing
    split: str
    seed: int | None
    data: str
    fingerprint: str | None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def counts(self) -> dict[str, int]:
        """Rows that are complete, without text, without image."""
        names = {"complete": COMPLETE, "text missing": TEXT_MISSING, "image missing": IMAGE_MISSING}
        return {name: int((self.values == value).sum()) for name, value in names.items()}

    @property
    def file_name(self) -> str:
        """`food101_train_missing_both_0.7_seed42.safetensors`."""
        missing = self.missing
        share = f"_share{missing.both_ratio:g}" if missing.kind == "both" and missing.both_ratio != 0.5 else ""
        data = re.sub(r"[^\w.-]+", "-", self.data)
        return f"{data}_{self.split}_missing_{missing.kind}_{missing.rate:g}{share}_seed{self.seed}.safetensors"


def table_seed(seed: int, split: str) -> int:
    """The seed of one split's table where one seed is given for all: 42, 1042, 2042 for train, validation, test."""
    return seed + TABLE_SEEDS[split]


def draw_table(dataset: Dataset, missing: Missing, seed: int) -> MissingTable:
    """The table of one split, `missing_table(dataset.rows, rate, kind, seed, both_ratio)`."""
    values = missing_table(dataset.rows, missing.rate, missing.kind, seed, missing.both_ratio)
    return MissingTable(values, missing, dataset.split, seed, dataset.name, dataset.fingerprint)


def per_sample(table: MissingTable, dataset: Dataset) -> Tensor:
    """What each sample of `dataset` lacks, natural absence included: int8 [N], 0 complete, 1 text, 2 image missing.

    Samples that show one image (a movie with several plots) share its row of the table, as published. The table of a
    subset is that of the whole.

    Raises:
        ValueError: the table was made for other rows or another split; the message names both.
    """
    refuse_stale(table, dataset, "table")
    if isinstance(dataset, Subset):
        return per_sample(table, dataset.dataset)[dataset.index]
    groups = dataset.groups()
    return combine_missing(dataset.available(), table.values if groups is None else table.values[groups])


def refuse_stale(table: MissingTable, dataset: Dataset, where: str) -> None:
    """ValueError when `table` was made for another split, number of rows, or content than `dataset` has."""
    here = f"{dataset.name}, {dataset.split}"
    if table.split != dataset.split:
        raise ValueError(f"{where}: got a missing table of {table.data}, {table.split}, expected one of {here}")
    if len(table) != dataset.rows:
        raise ValueError(
            f"{where}: got a missing table of {len(table):,} rows ({table.data}, {table.split}), "
            f"expected the {dataset.rows:,} rows of {here}"
        )
    if table.fingerprint is not None and table.fingerprint != dataset.fingerprint:
        raise ValueError(
            f"{where}: got a missing table made for data with fingerprint {table.fingerprint[:12]} ({table.data}, "
            f"{table.split}), expected {dataset.fingerprint[:12]} ({here}): the data has changed since; draw it again"
        )


def table_digest(values: Tensor, metadata: Mapping[str, str]) -> str:
    """SHA-256 over a table's values and the metadata of its file, `sha256` aside."""
    rest = {key: value for key, value in sorted(metadata.items()) if key != "sha256"}
    return digest(values.numpy().tobytes() + json.dumps(rest).encode())


def save_table(table: MissingTable, folder: str | Path) -> Path:
    """Write a drawn table as safetensors under `file_name`; everything it depends on is in the file's metadata."""
    if table.seed is None or table.fingerprint is None:
        raise ValueError("table: got one that was read from a published file, expected one from draw_table")
    values = table.values.to(torch.uint8)
    metadata = {
        "format": FORMAT,
        "data": table.data,
        "fingerprint": table.fingerprint,
        "split": table.split,
        "rows": str(len(table)),
        "kind": table.missing.kind,
        "rate": repr(table.missing.rate),
        "both_ratio": repr(table.missing.both_ratio),
        "seed": str(table.seed),
        "values": "0 complete, 1 text missing, 2 image missing; the rate counts what is missing",
    }
    metadata["sha256"] = table_digest(values, metadata)
    Path(folder).mkdir(parents=True, exist_ok=True)
    path = Path(folder) / table.file_name
    write_bytes(path, pack_tensors({"missing": values}, metadata))
    return path
