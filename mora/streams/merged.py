"""What a per-modality merge leaves: a projection with one plain weight for each modality."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mora.streams.calls import Routes


class ModalityLinear(nn.Module):
    """y = x W_m^T + b with W_m of the token's modality m; no factors, no masks.

    Its names in `state_dict` are "image.weight", "text.weight" and, where there is one, "bias".

    Args:
        weights: W_m [out, in] by modality.
        bias: b [out], shared by all, or None.
        routes: of the model, which say what a token is.
    """

    bias: Tensor | None

    def __init__(self, weights: Mapping[str, nn.Parameter], bias: nn.Parameter | None, routes: Routes) -> None:
        super().__init__()
        self.routes, self.modalities = routes, tuple(weights)
        for modality, weight in weights.items():
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            linear.weight = weight
            self.add_module(modality, linear)
        self.register_parameter("bias", bias)

    def weight_of(self, modality: str) -> Tensor:
        """W_m [out, in]."""
        weight: Tensor = self.get_parameter(f"{modality}.weight")
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out] for x [B, L, in]."""
        route = self.routes.here(x)
        return route.apply(x, self.one, lambda tokens: self.every(route.modalities, tokens))

    def one(self, modality: str, x: Tensor) -> Tensor:
        """Tokens of one modality [..., in] -> [..., out]."""
        return F.linear(x, self.weight_of(modality), self.bias)

    def every(self, modalities: tuple[str, ...], x: Tensor) -> list[Tensor]:
        """All tokens by the weight of each modality: one product."""
        weight = torch.cat([self.weight_of(modality) for modality in modalities])
        products = F.linear(x, weight).chunk(len(modalities), dim=-1)
        return [product if self.bias is None else product + self.bias for product in products]

    def extra_repr(self) -> str:
        out, width = self.weight_of(self.modalities[0]).shape
        return f"{width}, {out}, bias={self.bias is not None}, a weight for {' and '.join(self.modalities)}"
