"""What is kept of projections under LoRA or DoRA: their effective weights, where somebody asks for it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mora_kernels.group import is_capturing
from mora_kernels.kept import drop, scope_of
from mora_kernels.lora import lora_linear, lora_weight
from mora_kernels.projection import watch_optimizers
from mora_kernels.shelf import Shelf


class LoraGroup:
    """The projections of one adapter, with the verbs of `mora_kernels.Group`.

    In training a product is the frozen one and two thin ones. Where nothing needs a gradient it is one product with
    W + s B A, which is made at every use, and within `mora.keeping` once until a tensor changes as autograd counts.

    Args:
        projections: `mora.lora.linear.LoraLinear`s, read at every call.
    """

    def __init__(self, projections: Sequence[Any]) -> None:
        self.projections = list(projections)
        self.shelf: Shelf | None = None

    def invalidate(self) -> None:
        """Nothing is kept here, only in blocks of `mora.keeping`."""

    def drop(self) -> bool:
        """Let go of what this thread keeps."""
        drop(self)
        return True

    def linear(
        self, index: int, x: Tensor, bias: Tensor | None = None, dropout_p: float = 0.0, training: bool = True
    ) -> Tensor:
        """Return equation (5) or (6) of one projection."""
        one = self.projections[index]
        masked = training and dropout_p > 0
        if masked or not one.builds or (torch.is_grad_enabled() and (x.requires_grad or one.trains())):
            a, b, scale, magnitude = one.factors()
            if one.base is None:
                return lora_linear(x, one.weight, bias, a, b, scale, magnitude, dropout_p, training)
            frozen = one.stand.frozen(x)
            weight = None if magnitude is None else one.weight.to(frozen.dtype)
            return lora_linear(x, weight, bias, a, b, scale, magnitude, dropout_p, training, frozen)
        return F.linear(x, self.built(index, x.dtype), bias)

    def built(self, index: int, dtype: torch.dtype) -> Tensor:
        """Return W_eff [out, in] in the dtype of the weight, which is `dtype`; read it, do not write it."""
        one = self.projections[index]
        factors = (one.weight, *one.factors())
        tensors = [tensor for tensor in factors if isinstance(tensor, Tensor)]
        scope = scope_of(self)
        if self.shelf is not None:
            self.shelf.use(self, None if scope is None else scope.most)
        watch_optimizers()
        target = one.buffer(dtype, one.weight.device)

        def make() -> tuple[Tensor, list[Tensor]]:
            with torch.inference_mode(False), torch.no_grad():
                weight = lora_weight(*factors)
                if target is not None:
                    target.copy_(weight)
                # The tensors are kept beside it, so that no other comes to lie where one of them did.
                return weight if target is None else target, [tensor.detach() for tensor in tensors]

        countless = any(tensor.is_inference() for tensor in tensors)
        if scope is None or not scope.lasting or countless or is_capturing(one.weight.device):
            return make()[0]
        name = (id(one), "effective", dtype, threading.get_ident(), self)
        state = tuple((tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in tensors)
        key = (state, one.alpha, None if target is None else target.data_ptr())
        kept: Tensor = scope.keep(name, key, make, one.weight.device)[0]
        return kept
