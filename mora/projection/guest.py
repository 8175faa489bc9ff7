"""An adapted projection at a site at which others take turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from mora.bases import Base
from mora.projection.adapted import Adapted
from mora.projection.site import Site
from mora_kernels.factors import Origin


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
    def outline(self) -> Tensor:
        return self._site[0].outline

    @property
    def base(self) -> Base | None:  # type: ignore[override]
        """The site's."""
        return self._site[0].base

    @property
    def origin(self) -> Callable[[], Origin] | None:  # type: ignore[override]
        """The site's."""
        return self._site[0].origin

    def give(self, linear: Any) -> None:
        self._site[0].give(linear)

    def write(self, weight: Tensor) -> None:
        self._site[0].write(weight)

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
