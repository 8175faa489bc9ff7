"""Readers of missing tables: our own files, and those of the published code and of the papers before it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mora.data.dataset import Dataset
from mora.data.missing import COMPLETE, IMAGE_MISSING, KINDS, TEXT_MISSING, refuse_other_values
from mora.data.presence import Presence
from mora.data.published import published_name, split_name
from mora.data.tables import (
    FORMAT,
    FORMAT_OF_MANY,
    Missing,
    MissingTable,
    codes_of,
    draw_table,
    refuse_stale,
    table_digest,
)
from mora.system.files import read_pickled, regular_file
from mora.system.messages import listed

# mmimdb_splittrain_missing_both_0.7.pt, and the peers' mmimdb_dev_missing_both_07.pt
NAME = re.compile(r"(?P<data>.+?)_(?:split)?(?P<split>train|val|dev|test)_missing_(?P<kind>\w+?)_(?P<rate>[\d.]+)\.pt")
FORMS = "{data}_split{split}_missing_{kind}_0.7.pt or {data}_{split}_missing_{kind}_07.pt"
LARGEST_TABLE = 1 << 28  # bytes
DTYPES = (
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32,
    torch.float64,
)  # fmt: skip
FIELDS = ("data", "fingerprint", "split", "kind", "rate", "both_ratio", "seed", "sha256")


class Name(NamedTuple):
    """What the name of a published file tells."""

    data: str
    split: str
    missing: Missing


def load_table(path: str | Path, dataset: Dataset) -> MissingTable:
    """Read the missing table of `dataset`: a file of `save_table`, or a published `.pt`.

    Raises:
        ValueError: the file is damaged, its values contradict its name or metadata, or it was made for other rows;
            the message names the file and both sides.
        OSError: there is no such file.
    """
    table = read_table(path)
    if published_name(dataset.name) and published_name(table.data) and table.data != dataset.name:
        raise ValueError(f"{path}: got a missing table of {table.data}, expected one of {dataset.name}")
    refuse_stale(table, dataset, str(path))
    return table


def read_table(path: str | Path) -> MissingTable:
    """Read a missing table without asking which data it is for; errors as in `load_table`."""
    path = Path(path)
    try:
        regular_file(path, LARGEST_TABLE)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: got no such file, expected a missing table") from None
    return _read_own(path) if path.suffix == ".safetensors" else _read_published(path)


def find_table(folder: str | Path, dataset: Dataset, missing: Missing, seed: int) -> MissingTable:
    """Read the table of `dataset` out of a folder: ours of this seed, else the published one, whatever its seed.

    Raises:
        ValueError: the folder has none, or two; the message lists what it has.
    """
    folder = Path(folder)
    if missing.rate == 0:
        return draw_table(dataset, missing, seed)  # nobody keeps tables that take nothing
    own = MissingTable(torch.zeros(0), missing, dataset.split, seed, dataset.name, None).file_name
    if (folder / own).is_file():
        return load_table(folder / own, dataset)
    fitting = [path for path in sorted(folder.glob("*.pt")) if _fits(path, dataset, missing)]
    if len(fitting) == 1:
        return load_table(fitting[0], dataset)
    files = listed(sorted(path.name for path in folder.glob("*_missing_*"))) or "no missing tables"
    several = f"both {listed(path.name for path in fitting)}" if fitting else files
    raise ValueError(
        f"{folder}: got {several}, expected one table of {dataset.name}, {dataset.split}, {missing}: {own}"
    )


def _fits(path: Path, dataset: Dataset, missing: Missing) -> bool:
    try:
        name = parse_name(path)
    except ValueError:
        return False
    known = published_name(name.data) or name.data
    return (known, name.split, name.missing) == (dataset.name, dataset.split, missing)


def parse_name(path: Path) -> Name:
    """Data set, split, kind and rate out of a published file's name; ValueError when it has another form."""
    found = NAME.fullmatch(path.name)
    if found is None or found["kind"] not in KINDS:
        raise ValueError(f"{path}: got a missing table of this name, expected {FORMS}, with kind {', '.join(KINDS)}")
    digits = found["rate"]
    if "." not in digits and len(digits) > 1:
        digits = f"{digits[0]}.{digits[1:]}"
    try:
        missing = Missing(found["kind"], float(digits))
    except ValueError as error:
        raise ValueError(f"{path}: got a missing table of this name ({error}), expected {FORMS}") from error
    return Name(found["data"], split_name(found["split"]) or "", missing)


def _read_published(path: Path) -> MissingTable:
    name = parse_name(path)
    values = _published_values(path)
    refuse_other_values(str(path), values)
    _refuse_contradiction(path, values, name.missing)
    return MissingTable(
        values.to(torch.float32), name.missing, name.split, None, published_name(name.data) or name.data, None
    )


def _published_values(path: Path) -> Tensor:
    """The one tensor of a `torch.save`d file, a plain one that is no longer than its file; ValueError otherwise."""
    values = read_pickled(path, LARGEST_TABLE)
    if not isinstance(values, Tensor):
        raise ValueError(f"{path}: got {type(values).__name__}, expected a tensor of shape [rows]")
    plain = values.layout == torch.strided and values.device.type == "cpu" and values.dtype in DTYPES
    if not plain or values.ndim != 1 or values.numel() * values.element_size() > values.untyped_storage().nbytes():
        kind = f"{values.layout} {values.dtype} on {values.device}".replace("torch.", "")
        raise ValueError(
            f"{path}: got a tensor of shape {list(values.shape)} ({kind}, {path.stat().st_size:,} bytes of file), "
            "expected one of shape [rows], plain numbers, all in the file"
        )
    return values.detach()


def _refuse_contradiction(path: Path, values: Tensor, missing: Missing) -> None:
    """The published code makes exactly int(rows * rate) rows lack something, and only what the kind says."""
    expected = int(len(values) * missing.rate)
    lacking = int((values != COMPLETE).sum())
    other = {"text": IMAGE_MISSING, "image": TEXT_MISSING}.get(missing.kind)
    wrong = int((values == other).sum()) if other is not None else 0
    if lacking != expected or wrong:
        kind = f", {wrong:,} of them the other modality" if wrong else ""
        raise ValueError(
            f"{path}: got {lacking:,} of {len(values):,} rows that lack something{kind}, expected {expected:,} "
            f"that lack {'one or the other' if other is None else missing.kind}, as the file's name says"
        )


def _read_own(path: Path) -> MissingTable:
    regular_file(path, LARGEST_TABLE)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            many = metadata.get("format") == FORMAT_OF_MANY
            values = file.get_tensor("present" if many else "missing")
    except SafetensorError as error:
        raise ValueError(f"{path}: got a file that is no missing table ({error}), expected one") from error
    if metadata.get("format") != FORMAT and not many:
        raise ValueError(f"{path}: got format {metadata.get('format')!r}, expected {FORMAT!r}")
    fields = (*FIELDS, "modalities", "rates") if many else FIELDS
    lacking = [field for field in fields if field not in metadata]
    if lacking:
        raise ValueError(f"{path}: got metadata without {listed(lacking)}, expected all of {listed(fields)}")
    if values.ndim != 1 + many or values.dtype != torch.uint8:
        expected = "[rows, modalities]" if many else "[rows]"
        raise ValueError(
            f"{path}: got {values.dtype} of shape {list(values.shape)}, expected uint8 of shape {expected}"
        )
    if table_digest(values, metadata) != metadata["sha256"]:
        raise ValueError(f"{path}: got a table that was changed after it was drawn, expected it as it was drawn")
    data, split, fingerprint = metadata["data"], metadata["split"], metadata["fingerprint"]
    try:
        rates = tuple((str(name), float(rate)) for name, rate in json.loads(metadata["rates"])) if many else ()
        missing = Missing(metadata["kind"], float(metadata["rate"]), float(metadata["both_ratio"]), rates)
        seed = int(metadata["seed"])
        presence = _presence(path, values, metadata) if many else None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: got metadata of another form ({error}), expected a drawn table's") from error
    if presence is not None:
        return MissingTable(codes_of(presence), missing, split, seed, data, fingerprint, presence.modalities)
    refuse_other_values(str(path), values)
    return MissingTable(values.to(torch.float32), missing, split, seed, data, fingerprint)


def _presence(path: Path, values: Tensor, metadata: Mapping[str, str]) -> Presence:
    """What rows keep; ValueError for other values than 0 and 1, and for a row that keeps nothing."""
    if bool((values > 1).any()):
        raise ValueError(f"got {int(values.max())} among the values, expected 0 and 1")
    found = Presence(tuple(map(str, json.loads(metadata["modalities"]))), values.bool())
    found.refuse_empty(str(path))
    return found
