"""What every method's adapted projection is: a site with an adapter of its own."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from mora.projection.site import Site
from mora.projection.switch import Switch


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
            return self.stand.frozen(x)
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
