"""The place of one projection at which adapters take turns."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mora.choice import Choice


class Site(nn.Module):
    """Called like the `nn.Linear` it stands for; the adapter that is active there computes, or the frozen projection.

    Args:
        linear: with weight [out, in] and bias [out] or None, kept as they are under their own names.

    Attributes:
        choice: of the adapters with names of the model; None: there is one adapter.
        number: of this site among the model's.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.hold(linear)
        self.choice: Choice | None = None
        self.number = 0

    def hold(self, linear: Any) -> None:
        """Keep the parameters of `linear` under their own names."""
        self.weight, self.bias = linear.weight, linear.bias

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.weight.shape[0]

    @property
    def stand(self) -> Site:
        """The module that stands in the model and is called."""
        return self

    def present(self) -> Any:
        """The adapted projection that computes here and now, a `mora.MoraLinear`; None: the frozen one."""
        return None if self.choice is None else self.choice.at(self.number)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out] for x [..., in]."""
        one = self.present()
        return F.linear(x, self.weight, self.bias) if one is None else one.together(x)

    def alone(self, x: Tensor) -> Tensor:
        """As `forward`, for an x that no other projection reads: nothing is computed for the others of q, k, v."""
        one = self.present()
        return F.linear(x, self.weight, self.bias) if one is None else one.product(x)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


def present(module: Any) -> Any:
    """What computes where a module stands: an adapted projection, any other module itself; None: the frozen weight."""
    return module.present() if isinstance(module, Site) else module
