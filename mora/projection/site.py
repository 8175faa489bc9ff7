"""The place of one projection at which adapters take turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mora.bases import Base, base_of
from mora.projection.choice import Choice
from mora_kernels.factors import Origin


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
    base: Base | None = None  # where the weight is made from; None: it is a parameter
    origin: Callable[[], Origin] | None = None

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.hold(linear)
        self.choice: Choice | None = None
        self.number = 0

    def hold(self, linear: Any) -> None:
        """Keep the parameters of `linear` under their own names."""
        self.weight, self.bias = linear.weight, linear.bias

    def give(self, linear: Any) -> None:
        """Let `linear` hold the parameters as they are now."""
        linear.weight, linear.bias = self.weight, self.bias

    def write(self, weight: Tensor) -> None:
        """Put other values [out, in] in the place of the frozen weight."""
        self.weight.copy_(weight)

    @property
    def outline(self) -> Tensor:
        """A tensor of the weight's shape, dtype and device, whose values are not to be read: the weight, if it is."""
        return self.weight

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return self.outline.shape[1]

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.outline.shape[0]

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
        return self.frozen(x) if one is None else one.together(x)

    def alone(self, x: Tensor) -> Tensor:
        """As `forward`, for an x that no other projection reads: nothing is computed for the others of q, k, v."""
        one = self.present()
        return self.frozen(x) if one is None else one.product(x)

    def frozen(self, x: Tensor) -> Tensor:
        """What the projection that is stood for computes."""
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class HeldSite(Site):
    """A site whose frozen weight is made anew whenever it is read, from what a linear of another library holds.

    The linear stays out of sight, and everything that is done to the parameters is done to it: it knows how its codes
    and scales are moved, saved and loaded. Names in `state_dict` are its own.
    """

    base: Base

    def hold(self, linear: Any) -> None:
        """Keep the linear as it is."""
        base = linear.base if isinstance(linear, HeldSite) else base_of(linear)
        assert base is not None
        self.base = base
        self._parameters.update(base.linear._parameters)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """W [out, in], dequantised now."""
        return self.base.weight()

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """b [out] or None."""
        return self.base.bias

    @property
    def outline(self) -> Tensor:
        return self.base.outline

    def origin(self) -> Origin:
        """What W is made from."""
        return self.base.origin()

    def give(self, linear: Any) -> None:
        """Nothing to do: the linear holds what it held."""

    def write(self, weight: Tensor) -> None:
        self.base.write(weight)

    def frozen(self, x: Tensor) -> Tensor:
        return self.base.product(x)

    def apart(self) -> dict[str, nn.Parameter | None]:
        """Let go of the linear's parameters, and return this module's own."""
        own = {name: one for name, one in self._parameters.items() if name not in self.base.linear._parameters}
        self._parameters.clear()
        self._parameters.update(own)
        return own

    def join_again(self) -> None:
        """Register the linear's parameters as they are now before this module's own."""
        own = self.apart()
        self._parameters.clear()
        self._parameters.update({**self.base.linear._parameters, **own})

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """As in `nn.Module`; what the linear holds is moved by the linear."""
        self.apart()
        try:
            self.base.linear._apply(fn)
            super()._apply(fn, recurse)
        finally:
            self.join_again()
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """As in `nn.Module`; first what the linear saves."""
        self.base.linear._save_to_state_dict(destination, prefix, keep_vars)
        self.apart()
        try:
            super()._save_to_state_dict(destination, prefix, keep_vars)
        finally:
            self.join_again()

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, missing: Any, unexpected: Any, errors: Any
    ) -> None:
        """As in `nn.Module`; the linear loads what it holds, and nobody may expect the other's tensors."""
        theirs: list[str] = []
        ours: list[str] = []
        self.base.linear._load_from_state_dict(state_dict, prefix, metadata, strict, missing, theirs, errors)
        self.apart()
        try:
            super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, ours, errors)
        finally:
            self.join_again()
        unexpected += [name for name in ours if name in theirs]


def site_of(linear: Any) -> Site:
    """A site that stands for `linear`."""
    return Site(linear) if base_of(linear) is None else HeldSite(linear)


def present(module: Any) -> Any:
    """What computes where a module stands: an adapted projection, any other module itself; None: the frozen weight."""
    return module.present() if isinstance(module, Site) else module
