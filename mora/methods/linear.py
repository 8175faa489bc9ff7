"""MoraLinear, the module that stands where an `nn.Linear` stood."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import mora_kernels
from mora.bases.sharded import is_sharded
from mora.config import MoraConfig
from mora.methods.factors import CommonFactors
from mora.methods.start import check_call, column_norms, fill, follow, settle
from mora.projection.adapted import Adapted
from mora.projection.guest import Guest
from mora.projection.site import HeldSite
from mora_kernels import backend as backends


class MoraLinear(Adapted):
    """y = dropout(x) W_eff^T + b, equations (1) and (2), called like the frozen `nn.Linear` it stands for.

    Args:
        linear: the projection to adapt: weight [out, in] and bias [out] or None. Its parameters are kept as they are
            (same objects, same names) and frozen.
        common: the factors shared by the pair of blocks, one for each width of `linear` among them; not registered
            here, its owner is the patched model.
        modality: whose factor of `common` is S; the others' give the Gram matrix.
        config: ranks, alpha, dropout, init, variant and backend.

    Raises:
        ValueError: `common` has no factor for the width of the input or of the output.
    """

    kinds: ClassVar[tuple[str, ...]] = ("specific_a", "specific_b", "common_magnitude", "specific_magnitude")
    specific_a: nn.Parameter | None
    specific_b: nn.Parameter | None
    specific_magnitude: nn.Parameter | None
    fixed_root: Tensor | None

    def __init__(self, linear: Any, common: CommonFactors, modality: str, config: MoraConfig) -> None:
        super().__init__(linear)
        self.modality, self.alpha, self.dropout = modality, config.alpha_of(modality), float(config.dropout)
        self.gram, self.backend = config.variant not in ("no-gram", "fixed-gram"), config.backend
        scale = config.gram_scale(len(common.others(modality)))
        self.gram_scale, self.root_scale = (scale if self.gram else 1.0), scale
        fixed = common.expected_root(modality, scale) if config.variant == "fixed-gram" else None
        self.register_buffer("fixed_root", fixed, persistent=False)
        self._common = (common,)
        self.join(mora_kernels.Group([self], config.backend), 0)
        (rows, size), rank = self.outline.shape, config.specific_rank(modality)
        self.common_name = common.name(modality, size)
        self.common_out_name = None if rows == size else common.name(modality, rows)
        norm, self.identity = column_norms(self.weight), config.init == "identity"
        self.start: Tensor | None = None if norm.is_meta else norm.cpu()
        self.common_magnitude = nn.Parameter(torch.zeros_like(norm) if self.identity else norm.clone())
        if config.variant == "no-specific":
            for name in ("specific_a", "specific_b", "specific_magnitude"):
                self.register_parameter(name, None)
            return
        self.specific_a = nn.Parameter(norm.new_empty(size, rank).normal_(std=rank**-0.5))
        self.specific_b = nn.Parameter(norm.new_zeros(rank, rows))
        self.specific_magnitude = nn.Parameter(norm.clone())

    @property
    def common(self) -> CommonFactors:
        """The factors this projection shares with its pair of blocks."""
        return self._common[0]

    def factors(self) -> tuple[Tensor, list[Tensor] | None, Tensor | None, Tensor | None, Tensor, Tensor | None]:
        """The arguments of `mora_kernels.effective_weight` between `weight` and `alpha`."""
        if not torch.compiler.is_compiling():
            check_call(self)
        common = self.common.of(self.common_name)
        return common, self.others(), self.specific_a, self.specific_b, self.common_magnitude, self.specific_magnitude

    def others(self) -> list[Tensor] | None:
        """The factors whose Gram matrices add up to G; None where G = I."""
        if self.gram:
            return self.common.others(self.modality)
        return None if self.fixed_root is None else [self.fixed_root]

    @property
    def common_out(self) -> Tensor | None:
        """S_out [out, r_c], where the widths of input and output differ; else None."""
        return None if self.common_out_name is None else self.common.of(self.common_out_name)

    @property
    def sharded(self) -> bool:
        """Whether its parameters are not whole here and now."""
        return type(self.common_magnitude) is not nn.Parameter and is_sharded(self.common_magnitude)

    @property
    def builds(self) -> bool:
        """Whether W_eff is built for a product of its own: by every backend but the reference."""
        return self.backend != "reference"

    def effective_weight(self, weight: Tensor | None = None) -> Tensor:
        """W_eff [out, in] in the dtype of the weight, equation (1): what `merge` writes.

        Args:
            weight: W in another dtype, in which W_eff is wanted.
        """
        weight, factors = self.weight if weight is None else weight, (*self.factors(), self.alpha)
        options: dict[str, Any] = {"common_out": self.common_out, "gram_scale": self.gram_scale}
        return mora_kernels.effective_weight(weight, *factors, backend=self.backend, **options)

    def strengths(self) -> tuple[float, ...]:
        return self.alpha, self.gram_scale

    def settle(self) -> None:
        settle(self)

    def follow(self, loaded: bool) -> None:
        follow(self, loaded)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """As in `nn.Module`; memory that is new (`to_empty`) gets the start of an adapter."""
        empty = self.common_magnitude.is_meta
        super()._apply(fn, recurse)
        if empty and not self.common_magnitude.is_meta:
            fill(self)
            if self.fixed_root is not None:
                self.fixed_root = self.common.expected_root(self.modality, self.root_scale).to(self.fixed_root)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """As in `nn.Module`; without tensors of its own, an untouched adapter follows the weights that were loaded."""
        own = state_dict.get(f"{prefix}common_magnitude")
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.follow(loaded=own is not None and own is not self.common_magnitude)

    def path(self) -> tuple[str, str]:
        """(backend, reason): what computes this projection where it is now, or that its backend cannot run there."""
        try:
            return backends.explain(self.backend, self.outline.device, self.outline.dtype)
        except RuntimeError as error:
            return f"{self.backend} (cannot run)", str(error)

    def extra_repr(self) -> str:
        specific = "none" if self.specific_a is None else self.specific_a.shape[1]
        backend, _ = self.path()
        return (
            f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self.modality}, "
            f"common_rank={self.common.rank}, specific_rank={specific}, alpha={self.alpha}, dropout={self.dropout}, "
            f"backend={backend}"
        )


class HeldMoraLinear(HeldSite, MoraLinear):
    """A MoraLinear on weights that are quantised, or elsewhere between two calls."""


class MoraGuest(Guest, MoraLinear):
    """A MoraLinear whose frozen weight belongs to a site at which other adapters compute as well."""
