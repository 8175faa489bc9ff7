"""Builders of the published data sets: from the raw folders to the official Arrow layout."""

from mora.data.builders.run import READERS, build

__all__ = ["READERS", "build"]
