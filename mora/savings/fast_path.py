"""PyTorch's fused attention for eval, kept out where frozen blocks must give the bits that they give in training."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def as_in_training() -> Iterator[None]:
    """`nn.MultiheadAttention` without its fused path for eval: frozen blocks give in eval the bits of training.

    The switch is the process's: the last block to end, in whichever thread, puts it back.
    """
    with _fused.lock:
        if not _fused.blocks:
            _fused.before = torch.backends.mha.get_fastpath_enabled()
        _fused.blocks += 1
        torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        with _fused.lock:
            _fused.blocks -= 1
            if not _fused.blocks:
                torch.backends.mha.set_fastpath_enabled(_fused.before)


class _Fused:
    """How many blocks want the fused path off, and how it was before the first."""

    def __init__(self) -> None:
        self.lock, self.blocks, self.before = threading.Lock(), 0, True


_fused = _Fused()
