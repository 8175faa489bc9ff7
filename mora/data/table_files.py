"""Readers of missing tables: our own files, and those of the published code and of the papers before it."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mora.data.dataset import Dataset
from mora.data.missing import COMPLETE, IMAGE_MISSING, KINDS, TEXT_MISSING, refuse_other_values
from mora.data.published import published_name, split_name
from mora.data.tables import FORMAT, Missing, MissingTable, draw_table, refuse_stale, table_digest
from mora.system.messages import listed

# mmimdb_splittrain_missing_both_0.7.pt, and the peers' mmimdb_dev_missing_both_07.pt
NAME = re.compile(r"(?P<data>.+?)_(?:split)?(?P<split>train|val|dev|test)_missing_(?P<kind>\w+?)_(?P<rate>[\d.]+)\.pt")
FORMS = "{data}_split{split}_missing_{kind}_0.7.pt or {data}_{split}_missing_{kind}_07.pt"
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
    if not path.is_file():
        raise FileNotFoundError(f"{path}: got no such file, expected a missing table")
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
    return Name(found["data"], split_name(found["split"]) or "", Missing(found["kind"], float(digits)))


def _read_published(path: Path) -> MissingTable:
    name = parse_name(path)
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(f"{path}: got a file that cannot be read safely ({reason}), expected one tensor") from error
    if not isinstance(values, Tensor) or values.ndim != 1:
        what = f"a tensor of shape {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"{path}: got {what}, expected a tensor of shape [rows]")
    refuse_other_values(str(path), values)
    _refuse_contradiction(path, values, name.missing)
    return MissingTable(
        values.to(torch.float32), name.missing, name.split, None, published_name(name.data) or name.data, None
    )


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
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            values = file.get_tensor("missing")
    except SafetensorError as error:
        raise ValueError(f"{path}: got a file that is no missing table ({error}), expected one") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path}: got format {metadata.get('format')!r}, expected {FORMAT!r}")
    lacking = [field for field in FIELDS if field not in metadata]
    if lacking:
        raise ValueError(f"{path}: got metadata without {listed(lacking)}, expected all of {listed(FIELDS)}")
    if table_digest(values, metadata) != metadata["sha256"]:
        raise ValueError(f"{path}: got a table that was changed after it was drawn, expected it as it was drawn")
    refuse_other_values(str(path), values)
    missing = Missing(metadata["kind"], float(metadata["rate"]), float(metadata["both_ratio"]))
    seed, data, split = int(metadata["seed"]), metadata["data"], metadata["split"]
    return MissingTable(values.to(torch.float32), missing, split, seed, data, metadata["fingerprint"])
