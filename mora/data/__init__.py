"""Data sets of every kind behind one interface, and missing tables; heavy packages load when a source needs them."""

from mora.data.corruption import Corruption
from mora.data.dataset import Dataset, Row, Sample
from mora.data.missing import combine_missing, missing_table
from mora.data.modalities import register
from mora.data.modality import BrokenInputError, Modality
from mora.data.open import open_dataset, splits_of
from mora.data.presence import Presence
from mora.data.table_files import find_table, load_table
from mora.data.tables import (
    Missing,
    MissingTable,
    draw_table,
    parse_missing,
    per_sample,
    presence_of,
    save_table,
    table_seed,
)
from mora.data.views import Corrupted

__all__ = [
    "BrokenInputError",
    "Corrupted",
    "Corruption",
    "Dataset",
    "Missing",
    "MissingTable",
    "Modality",
    "Presence",
    "Row",
    "Sample",
    "combine_missing",
    "draw_table",
    "find_table",
    "load_table",
    "missing_table",
    "open_dataset",
    "parse_missing",
    "per_sample",
    "presence_of",
    "register",
    "save_table",
    "splits_of",
    "table_seed",
]
