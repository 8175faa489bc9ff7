"""Adapters on disk: our own folder format, and the reference implementation's file."""

from mora.checkpoint.adapter import load_adapter, save_adapter, save_adapters
from mora.checkpoint.official import load_official, save_official

__all__ = ["load_adapter", "load_official", "save_adapter", "save_adapters", "save_official"]
