"""Missing tables of data sets: drawn from a seed, and kept in files that know what they were made from and for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from mora.data.dataset import Dataset
from mora.data.drawing import draw_presence
from mora.data.missing import IMAGE_MISSING, KINDS, TEXT_MISSING
from mora.data.policies import BOTH, FORM, Missing, by_split, parse_missing
from mora.data.presence import PAIR, Presence
from mora.data.views import Subset
from mora.system.files import digest, pack_tensors, write_bytes

__all__ = [
    "FORM", "FORMAT", "FORMAT_OF_MANY", "Missing", "MissingTable", "by_split", "codes_of", "draw_table",
    "parse_missing", "per_sample", "presence_of", "refuse_stale", "save_table", "table_digest", "table_seed",
]  # fmt: skip

FORMAT, FORMAT_OF_MANY = "mora missing table 1", "mora missing table 2"
# A seed's offset in each split, so that no two splits draw alike.
TABLE_SEEDS = {"train": 0, "validation": 1000, "test": 2000, "all": 3000}


@dataclass(frozen=True)
class MissingTable:
    """What each row loses, and what that was made from and for.

    `values` float32 [rows] is what a row lacks, a sum: its text 1, its image 2, and each other of `modalities`, in
    their order, 4, 8 and so on. So of image and text it is the official code of `missing_table`; `presence` says it by
    name. `seed` and `fingerprint` are None for the published files, which do not tell them.
    """

    values: Tensor
    missing: Missing
    split: str
    seed: int | None
    data: str
    fingerprint: str | None
    modalities: tuple[str, ...] = PAIR

    def __len__(self) -> int:
        return len(self.values)

    @property
    def presence(self) -> Presence:
        """Which modalities each row keeps."""
        codes = self.values.to(torch.int64)
        return Presence.of({name: codes & bit == 0 for name, bit in bits_of(self.modalities).items()})

    @property
    def counts(self) -> dict[str, int]:
        """Rows that are complete, and rows without each modality: of three and more a row may be without several."""
        order = ("text", "image") if set(self.modalities) == set(PAIR) else self.modalities
        found = self.presence
        return {"complete": found.complete} | {f"{name} missing": found.missing[name] for name in order}

    @property
    def file_name(self) -> str:
        """`food101_train_missing_both_0.7_seed42.safetensors`."""
        missing = self.missing
        share = f"_share{missing.both_ratio:g}" if missing.kind == BOTH and missing.both_ratio != 0.5 else ""
        what = f"{missing.kind}_{missing.rate:g}{share}" if not missing.rates else str(missing).replace(":", "_")
        data = re.sub(r"[^\w.-]+", "-", self.data)
        return f"{data}_{self.split}_missing_{what}_seed{self.seed}.safetensors"


def bits_of(modalities: tuple[str, ...]) -> dict[str, int]:
    """What each modality counts in `MissingTable.values` where it is missing."""
    others = [name for name in modalities if name not in PAIR]
    known = {"text": TEXT_MISSING, "image": IMAGE_MISSING, **{name: 4 << at for at, name in enumerate(others)}}
    return {name: known[name] for name in modalities}


def codes_of(presence: Presence) -> Tensor:
    """`MissingTable.values` of a presence, float32 [rows]."""
    bits = torch.tensor([*bits_of(presence.modalities).values()])
    return (~presence.mask * bits).sum(dim=1).to(torch.float32)


def table_seed(seed: int, split: str) -> int:
    """The seed of one split's table where one seed is given for all: 42, 1042, 2042 for train, validation, test."""
    return seed + TABLE_SEEDS[split]


def draw_table(dataset: Dataset, missing: Missing, seed: int) -> MissingTable:
    """The table of one split, `missing_table(dataset.rows, rate, kind, seed, both_ratio)` of image and text alone.

    Of other modalities, and of kinds that are not the published ones, as `mora.data.drawing.draw_presence` draws it.
    """
    found = draw_presence(dataset.rows, dataset.modalities, missing, seed)
    return MissingTable(
        codes_of(found), missing, dataset.split, seed, dataset.name, dataset.fingerprint, dataset.modalities
    )


def presence_of(table: MissingTable, dataset: Dataset) -> Presence:
    """What each sample of `dataset` has where a table takes away and by itself.

    What a sample lacks by itself stays so. Where both together would leave it nothing, the table takes nothing from it.
    Samples that show one image (a movie with several plots) share its row of the table, as published. The table of a
    subset is that of the whole.

    Raises:
        ValueError: the table was made for other rows or another split, the message names both; a sample that has
            nothing by itself.
    """
    refuse_stale(table, dataset, "table")
    if isinstance(dataset, Subset):
        return presence_of(table, dataset.dataset).rows(dataset.index)
    natural, groups = dataset.present(), dataset.groups()
    natural.refuse_empty(f"{dataset.name}, {dataset.split}")
    return (table.presence if groups is None else table.presence.rows(groups)).within(natural)


def per_sample(table: MissingTable, dataset: Dataset) -> Tensor:
    """As `presence_of`, in the official code of image and text alone: int8 [N], 0 complete, 1 text, 2 image missing."""
    return presence_of(table, dataset).codes()


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
    if unknown := [name for name in table.modalities if name not in dataset.modalities]:
        raise ValueError(
            f"{where}: got a missing table of {', '.join(unknown)}, expected one of {', '.join(dataset.modalities)}, "
            f"as {here} has"
        )


def table_digest(values: Tensor, metadata: Mapping[str, str]) -> str:
    """SHA-256 over a table's values and the metadata of its file, `sha256` aside."""
    rest = {key: value for key, value in sorted(metadata.items()) if key != "sha256"}
    return digest(values.numpy().tobytes() + json.dumps(rest).encode())


def save_table(table: MissingTable, folder: str | Path) -> Path:
    """Write a drawn table as safetensors under `file_name`; everything it depends on is in the file's metadata."""
    if table.seed is None or table.fingerprint is None:
        raise ValueError("table: got one that was read from a published file, expected one from draw_table")
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
    name, values = "missing", table.values.to(torch.uint8)
    if set(table.modalities) != set(PAIR) or table.missing.kind not in KINDS:
        name, values = "present", table.presence.mask.to(torch.uint8)
        metadata |= {
            "format": FORMAT_OF_MANY,
            "modalities": json.dumps(table.modalities),
            "rates": json.dumps(asdict(table.missing)["rates"]),
            "values": "a column per modality: 1 where the row keeps it; the rate counts what is missing",
        }
    metadata["sha256"] = table_digest(values, metadata)
    Path(folder).mkdir(parents=True, exist_ok=True)
    path = Path(folder) / table.file_name
    write_bytes(path, pack_tensors({name: values}, metadata))
    return path
