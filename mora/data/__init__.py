"""Data sets of every kind behind one interface, and missing tables; heavy packages load when a source needs them."""

from mora.data.dataset import Dataset, Sample, open_dataset, splits_of

__all__ = ["Dataset", "Sample", "open_dataset", "splits_of"]
