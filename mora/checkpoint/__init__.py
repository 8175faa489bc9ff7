"""Adapters on disk: our own folder format, the reference implementation's file, and PEFT's."""

from mora.checkpoint.adapter import load_adapter, save_adapter, save_adapters
from mora.checkpoint.official import load_official, save_official
from mora.checkpoint.peft.truncate import to_peft

__all__ = ["load_adapter", "load_official", "save_adapter", "save_adapters", "save_official", "to_peft"]
