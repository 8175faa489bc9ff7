"""Embeddings as a file: Parquet, NumPy's .npz or safetensors, by its suffix."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mora.system.files import pack_tensors
from mora.system.machine import need


class Columns(NamedTuple):
    """What a file of embeddings holds, a row per sample.

    Attributes:
        ids: of the samples.
        rows: float32 [N, e] by modality.
        present: bool [N] by modality.
        empty: modalities of which a row that is not there is null (NaN in files of arrays), and not its substitute's.
        labels: int64 [N] or multi-hot [N, C]; None where the data has none.
        classes: names of the labels.
        about: where the embeddings come from.
    """

    ids: list[str]
    rows: Mapping[str, Tensor]
    present: Mapping[str, Tensor]
    empty: bool
    labels: Tensor | None
    classes: tuple[str, ...]
    about: dict[str, Any]

    def arrays(self) -> dict[str, Tensor]:
        """Embeddings with NaN for nulls, presence and labels, by the names of the columns."""
        found = {}
        for modality, rows in self.rows.items():
            there = self.present[modality][:, None]
            found[modality] = torch.where(there, rows, torch.nan) if self.empty else rows
        found |= {f"{modality}_present": mask for modality, mask in self.present.items()}
        return found if self.labels is None else {**found, "label": self.labels}


def as_parquet(columns: Columns) -> bytes:
    """Columns id, a fixed-size list of float32 per modality, {modality}_present, label (a name, or a list of them)."""
    need("pyarrow", "writing Parquet")
    import pyarrow as pa
    from pyarrow import parquet

    found: dict[str, Any] = {"id": pa.array(columns.ids, pa.string())}
    for modality, rows in columns.rows.items():
        values = pa.array(rows.contiguous().numpy().reshape(-1), pa.float32())
        absent = pa.array((~columns.present[modality]).numpy()) if columns.empty else None
        found[modality] = pa.FixedSizeListArray.from_arrays(values, rows.shape[1], mask=absent)
    found |= {f"{modality}_present": pa.array(mask.numpy()) for modality, mask in columns.present.items()}
    if columns.labels is not None:
        names: list[Any] = [named(one, columns.classes) for one in columns.labels]
        found["label"] = pa.array(names, pa.list_(pa.string()) if columns.labels.ndim == 2 else pa.string())
    table = pa.table(found).replace_schema_metadata({"mora": json.dumps(columns.about)})
    made = io.BytesIO()
    parquet.write_table(table, made)
    return made.getvalue()


def named(label: Tensor, classes: tuple[str, ...]) -> Any:
    """The name of a class, or the names of several."""
    return classes[int(label)] if label.ndim == 0 else [classes[int(place)] for place in label.nonzero().flatten()]


def as_npz(columns: Columns) -> bytes:
    """The arrays, ids and classes as NumPy's strings, and what they come from as JSON in `about`; no pickles."""
    made, arrays = io.BytesIO(), {name: tensor.numpy() for name, tensor in columns.arrays().items()}
    words = {"id": np.array(columns.ids, dtype=np.str_), "about": np.array(json.dumps(columns.about))}
    if columns.labels is not None:
        words["classes"] = np.array(columns.classes, dtype=np.str_)
    np.savez(made, **words, **arrays)  # type: ignore[arg-type]
    return made.getvalue()


def as_safetensors(columns: Columns) -> bytes:
    """The arrays; ids, classes and what they come from as JSON in the metadata."""
    words = {"id": columns.ids, "about": columns.about}
    if columns.labels is not None:
        words["classes"] = list(columns.classes)
    return pack_tensors(columns.arrays(), {name: json.dumps(value) for name, value in words.items()})


WRITERS: dict[str, Callable[[Columns], bytes]] = {
    ".parquet": as_parquet,
    ".npz": as_npz,
    ".safetensors": as_safetensors,
}


def writer_of(path: Path) -> Callable[[Columns], bytes]:
    """By the suffix; ValueError for another one."""
    if path.suffix.lower() not in WRITERS:
        raise ValueError(f"out: got {path}, expected a file that ends in {', '.join(WRITERS)}")
    return WRITERS[path.suffix.lower()]
