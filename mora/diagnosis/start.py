"""What is known of an adapter's start: tensors somebody kept, or what `patch` does in any case."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mora.adapters.record import Adapters
from mora.checkpoint.adapter import WEIGHTS
from mora.checkpoint.tensors import check_tensors
from mora.system.files import read_tensors

Start = Mapping[str, Tensor] | str | os.PathLike[str]


def known_start(adapters: Adapters, start: Start | None) -> dict[str, Tensor] | None:
    """The adapter's tensors at the start by their own names, checked: all common factors, and others where given.

    Args:
        adapters: the model's record.
        start: copies of `mora.adapter_state_dict(model)` from before training, or a folder that `mora.save_adapter`
            wrote then; None where nobody kept any.

    Raises:
        ValueError: the adapters themselves in place of copies; a common factor that is absent; a name, shape or value
            that is not the adapters'.
    """
    if start is None:
        return None
    if isinstance(start, Mapping):
        given, where = dict(start), "start"
    else:
        path = Path(start) / WEIGHTS
        given, where = read_tensors(path)[0], str(path)
    own = dict(adapters.named_tensors())
    for name, tensor in given.items():
        if name in own and tensor.data_ptr() == own[name].data_ptr() and tensor.device == own[name].device:
            raise ValueError(
                f"start: {name} is the adapter's own memory, which training changes, expected copies made before: "
                "{name: tensor.clone() for name, tensor in mora.adapter_state_dict(model).items()}"
            )
    wanted = {name for name in own if name.startswith("common.")} | (given.keys() & own.keys())
    check_tensors(where, given, {name: tuple(own[name].shape) for name in own if name in wanted})
    return given
