"""Builders: the published data sets in the official Arrow layout, and Tux Paint's stamps as a manifest."""

from mora.data.builders.run import READERS, build
from mora.data.builders.stamps import build_stamps

__all__ = ["READERS", "build", "build_stamps"]
