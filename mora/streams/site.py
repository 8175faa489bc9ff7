"""The place of a projection that the tokens of all modalities go through, each by the weight of its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mora.methods.linear import MoraLinear
from mora.projection.adapted import Adapted
from mora.projection.site import Site
from mora.streams.calls import Routes
from mora_kernels.beside import linears_beside


class StreamSite(Site):
    """Called like the `nn.Linear` it stands for: every token goes through W_eff of its modality, equations (1) and (2).

    Tokens of a modality that is not adapted go through the frozen weight, and so do all within `mora.disabled`.

    Args:
        linear: the frozen projection, [out, in].
        routes: of the model, which say what a token is.

    Attributes:
        streams: the adapted projection of each modality, on the one frozen weight that this module holds.
    """

    def __init__(self, linear: Any, routes: Routes) -> None:
        super().__init__(linear)
        self.routes = routes
        self.streams = nn.ModuleDict()
        self._original = (linear,)

    @property
    def original(self) -> Any:
        """What stood here before."""
        return self._original[0]

    def adapt(self, projection: Adapted) -> None:
        """Adapt the tokens of the projection's modality."""
        self.streams[projection.modality] = projection

    def release(self, modality: str) -> bool:
        """Adapt the tokens of a modality no longer; whether none is adapted then."""
        del self.streams[modality]
        return not self.streams

    @property
    def adapted(self) -> dict[str, Adapted]:
        """The adapted projections by modality."""
        return dict(self.streams.items())  # type: ignore[arg-type]

    @property
    def is_on(self) -> bool:
        """Whether the adapted computation is asked for here."""
        return bool(self.streams) and next(iter(self.adapted.values())).switch.is_on

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out] for x [B, L, in]."""
        if not self.is_on:
            return self.frozen(x)
        route = self.routes.here(x)
        return route.apply(x, self.one, lambda tokens: self.every(route.modalities, tokens))

    def alone(self, x: Tensor) -> Tensor:
        return self(x)

    def one(self, modality: str, x: Tensor) -> Tensor:
        """Tokens of one modality [..., in] -> [..., out]."""
        projection = self.adapted.get(modality)
        return self.frozen(x) if projection is None else projection.product(x)

    def every(self, modalities: tuple[str, ...], x: Tensor) -> list[Tensor]:
        """All tokens by the weight of each modality: of MoRA by one mask, and one product for all of them."""
        coupled = {m: one for m, one in self.adapted.items() if isinstance(one, MoraLinear)}
        products: dict[str, Tensor] = {}
        if coupled:
            some = next(iter(coupled.values()))
            group, indices = some.place[0], [one.place[1] for one in coupled.values()]
            found = linears_beside(group, indices, x, self.bias, some.dropout, self.training)
            products = dict(zip(coupled, found, strict=True))
        return [products[m] if m in products else self.one(m, x) for m in modalities]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {' and '.join(self.streams)} apart"
