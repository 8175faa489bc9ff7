"""The place of one projection at which adapters take turns."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mora.choice import Choice
from mora.switch import Switch


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


class Adapted(Site):
    """A site with an adapter of its own, whatever the method: `mora.MoraLinear`, `mora.lora.linear.LoraLinear`.

    Attributes:
        kinds: names of the tensors of the adapter, those that are None included.
        modality: of the tower.
        alpha: plain factor of the update.
        dropout: probability, in training.
        backend: of the configuration.
        builds: whether W_eff is built here and now for a product of its own.
        switch: of the model.
        place: (group of what is built together, number there).
        shared_input: of the others of q, k, v; None where they are not computed together.
    """

    kinds: ClassVar[tuple[str, ...]]
    modality: str
    alpha: float
    dropout: float
    backend: str
    place: tuple[Any, int]

    def __init__(self, linear: Any) -> None:
        super().__init__(linear)
        self.switch = Switch()
        self.shared_input: Any = None

    @property
    def builds(self) -> bool:
        raise NotImplementedError

    def join(self, group: Any, index: int) -> None:
        """Be built as number `index` of `group`, together with the other projections of a model."""
        self.place = (group, index)

    def present(self) -> Any:
        """Itself; where there are several adapters, the one that computes here and now."""
        return self if self.choice is None else self.choice.at(self.number)

    def together(self, x: Tensor) -> Tensor:
        """Return [..., out] for x [..., in]; inside `mora.disabled`, the frozen projection."""
        if self.shared_input is not None and self.shared_input.share(self):
            shared: Tensor = self.shared_input.project(self, x)
            return shared
        return self.product(x)

    def product(self, x: Tensor) -> Tensor:
        """The same for this projection alone, whatever computes beside it."""
        if not self.switch.is_on:
            return F.linear(x, self.weight, self.bias)
        group, index = self.place
        y: Tensor = group.linear(index, x, self.bias, self.dropout, self.training)
        return y

    def buffer(self, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """Where W_eff [out, in] is to be written; None: wherever the group likes."""
        return None

    def effective_weight(self, weight: Tensor | None = None) -> Tensor:
        """W_eff [out, in] in the dtype of the weight: what `merge` writes.

        Args:
            weight: W in another dtype, in which W_eff is wanted.
        """
        raise NotImplementedError

    def strengths(self) -> tuple[float, ...]:
        """Plain numbers that what is computed depends on, which no counter of autograd sees change."""
        return (self.alpha,)

    def settle(self) -> None:
        """Start anew from the weight that is there now."""
        raise NotImplementedError

    def follow(self, loaded: bool) -> None:
        """After weights were loaded: start anew from them where nothing was trained, else say that it was."""
        raise NotImplementedError

    def path(self) -> tuple[str, str]:
        """(backend, reason): what computes this projection where it is now, or that its backend cannot run there."""
        raise NotImplementedError

    def __prepare_scriptable__(self) -> Any:
        raise RuntimeError(
            "torch.jit.script cannot hold adapters; expected a merged model (mora.merge(copy.deepcopy(model))), or "
            "torch.export"
        )


class Guest(Adapted):
    """An adapted projection whose frozen weight belongs to a site at which other adapters compute as well.

    Args:
        linear: the site; it is what stands in the model, is called, and says whether it is in training.
    """

    def hold(self, linear: Site) -> None:
        """Remember where the weight is; it stays with its owner."""
        self._site = (linear,)

    @property
    def stand(self) -> Site:
        return self._site[0]

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """W [out, in]."""
        return self._site[0].weight

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """b [out] or None."""
        return self._site[0].bias

    @property
    def training(self) -> bool:
        """Whether the site is."""
        return self._site[0].training

    @training.setter
    def training(self, mode: bool) -> None:
        """The site's own `train` decides."""


def present(module: Any) -> Any:
    """What computes where a module stands: an adapted projection, any other module itself; None: the frozen weight."""
    return module.present() if isinstance(module, Site) else module
