"""NaN and infinity: found at the step they appear in, and named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

# A gradient scaler halves its scale at every overflow: after so many in a row (2^16 to 2^-9) it is not the scale.
SKIPS_IN_A_ROW = 25


class NotFiniteError(ValueError):
    """Training met NaN or infinity; the message names the tensor and the step."""


def grad_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """L2 norm of all gradients together."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def broken(tensors: Mapping[str, Tensor | None]) -> list[str]:
    """ "name (3 of 10 elements)" of every tensor that has NaN or infinite elements."""
    found = []
    for name, tensor in tensors.items():
        bad = 0 if tensor is None else int((~torch.isfinite(tensor)).sum())
        if tensor is not None and bad:
            found.append(f"{name} ({bad} of {tensor.numel()} elements)")
    return found


def explain(
    where: str, loss: float, trained: Mapping[str, nn.Parameter], batch: Mapping[str, Tensor], ids: list[str]
) -> NotFiniteError:
    """The error for a step whose loss or gradient is not finite: which parameter, gradient or input it shows in.

    Args:
        where: the step, in words.
        loss: of this step.
        trained: what is trained, by name.
        batch: the last inputs of this process.
        ids: of its rows, for the message.
    """
    parameters = broken(trained)
    given = {name: tensor for name, tensor in batch.items() if tensor.is_floating_point()}
    inputs = broken(given)
    gradients = broken({f"gradient of {name}": parameter.grad for name, parameter in trained.items()})
    if parameters:
        found = f"parameter {parameters[0]} is not finite"
    elif inputs:
        rows = [
            ids[row] for row in range(len(ids)) if any(bool((~torch.isfinite(t[row])).any()) for t in given.values())
        ]
        found = f"input {inputs[0]} is not finite, rows {', '.join(rows[:5])}"
    elif gradients:
        more = f" and {len(gradients) - 1} more" if len(gradients) > 1 else ""
        found = f"{gradients[0]}{more} is not finite"
    else:
        found = "parameters, inputs and gradients are finite: the logits overflowed"
    return NotFiniteError(
        f"{where}: the loss is {loss:.4g}, {found}; training stopped, the last checkpoint is from before. A smaller "
        "lr, or precision bf16 or fp32, usually helps"
    )
