"""`Base`: the frozen linear of another library, as an adapted projection reads it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from mora_kernels.factors import Origin


class Base(ABC):
    """A linear whose W [out, in] is made at every build of W_eff, and let go of with it.

    Args:
        linear: stays as it is, and goes on holding what W is made from.

    Attributes:
        linear: the same.
        written: whether `write` can put other values there; what cannot becomes an `nn.Linear` when merged.
    """

    written = False

    def __init__(self, linear: Any) -> None:
        self.linear = linear

    @property
    @abstractmethod
    def label(self) -> str:
        """What it is, in a few words: "bitsandbytes nf4"."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        rows, columns = self.linear.weight.shape
        return rows, columns

    @property
    def own_dtype(self) -> torch.dtype:
        """The dtype of the dequantised values: what the weight says it has."""
        return self.linear.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where W is made."""
        return self.linear.weight.device

    @property
    def bias(self) -> Tensor | None:
        """b [out] or None."""
        return self.linear.bias

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of what W_eff is merged into: that of the bias, which follows the model, else W's own."""
        bias = self.linear.bias
        return bias.dtype if bias is not None and bias.is_floating_point() else self.own_dtype

    @property
    def outline(self) -> Tensor:
        """A tensor of W's shape, on its device, in `dtype`, which holds no values and next to no memory."""
        return torch.empty((), dtype=self.dtype, device=self.device).expand(self.shape)

    def weight(self) -> Tensor:
        """W [out, in] in `own_dtype`, made anew: its own memory, or memory that is only to be read."""
        if torch.compiler.is_compiling():
            return self.dequantised().detach()
        with torch.inference_mode(False), torch.no_grad():
            return self.dequantised().detach()

    @abstractmethod
    def dequantised(self) -> Tensor:
        """The same, however the grad mode is."""

    @abstractmethod
    def sources(self) -> list[Tensor]:
        """The tensors that W is made from."""

    def origin(self) -> Origin:
        """What tells that W is another than before, as far as autograd counts changes."""
        return Origin.of(self.sources())

    def product(self, x: Tensor) -> Tensor:
        """What the library itself computes of x [..., in]: [..., out]."""
        return self.linear.forward(x)

    def write(self, weight: Tensor) -> None:
        """Put other values [out, in] in the place of W."""
        raise NotImplementedError(self.label)

    def plain(self, weight: Tensor) -> nn.Linear:
        """A frozen `nn.Linear` with these values [out, in] and the bias, in `dtype`."""
        rows, columns = self.shape
        made = nn.Linear(columns, rows, self.bias is not None, self.device, self.dtype).requires_grad_(False)
        made.weight.copy_(weight)
        if self.bias is not None:
            made.bias.copy_(self.bias)
        return made.train(self.linear.training)
