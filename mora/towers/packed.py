"""Packed q, k, v as three projections: what every attention that stands for a packed one shares.

`nn.MultiheadAttention` never calls `out_proj.forward`, and in eval takes a fused path that hooks do not see; it packs
q, k, v into one `in_proj_weight` [3 d, d]. So the whole module is replaced: same parameters (the same objects, under
the same names), each of q, k, v on its slice. Where an `nn.Linear` makes q, k, v at once, that linear is replaced.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mora.projection.adapted import Adapted
from mora.projection.site import Site, present
from mora.system.hooks import share_hooks
from mora_kernels import Group
from mora_kernels.kept import Scope, scope_of
from mora_kernels.numerics import product_dtype

PACKED = ("q", "k", "v")


class PackedSlice:
    """One of q, k, v of what packs them, seen as the `nn.Linear` it would be.

    Args:
        owner: the module that holds the packed parameters.
        position: 0, 1 or 2.
        names: of the packed weight [3 d, d] and bias [3 d] there.
    """

    def __init__(self, owner: Any, position: int, names: tuple[str, str] = ("in_proj_weight", "in_proj_bias")) -> None:
        self.owner, self.position, self.names = owner, position, names

    def rows(self, packed: Tensor) -> Tensor:
        """The third of `packed` [3 d, ...] that belongs to this projection, a view [d, ...]."""
        size = packed.shape[0] // 3
        return packed[self.position * size : (self.position + 1) * size]

    @property
    def weight(self) -> Tensor:
        """W [d, d], a view of the packed parameter."""
        return self.rows(getattr(self.owner, self.names[0]))

    @property
    def bias(self) -> Tensor | None:
        """b [d], a view of the packed parameter, or None."""
        bias = getattr(self.owner, self.names[1])
        return None if bias is None else self.rows(bias)

    def copied(self) -> nn.Linear:
        """A frozen `nn.Linear` of its own with this weight and bias."""
        rows, columns = self.weight.shape
        linear = nn.Linear(columns, rows, self.bias is not None, self.weight.device, self.weight.dtype)
        self.take(linear.requires_grad_(False), back=False)
        return linear

    @torch.no_grad()
    def take(self, linear: nn.Linear, back: bool = True) -> None:
        """Write the weight and bias of `linear` into the packed ones; the other way round if not `back`."""
        for one, other in ((self.weight, linear.weight), (self.bias, linear.bias)):
            if one is not None:
                source, target = (other, one) if back else (one, other)
                target.copy_(source)


class PackedSite(Site):
    """A site whose frozen weight is a slice of a packed parameter that another module owns."""

    def hold(self, linear: PackedSlice) -> None:
        """Remember where the weight is; the packed parameter stays with its owner."""
        self._slice = linear

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """W [d, d]."""
        return self._slice.weight

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """b [d] or None."""
        return self._slice.bias


class PackedAdapted(PackedSite, Adapted):
    """An adapted projection whose frozen weight is a slice of a packed parameter that another module owns."""

    def buffer(self, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """Where W_eff [d, d] is to be written: its rows of the owner's packed W_eff, if that is kept."""
        owner = self._slice.owner
        return None if owner.scope() is None else self._slice.rows(owner.packed_buffer(dtype, device, self.place[0]))

    def build(self, dtype: torch.dtype) -> None:
        """See to it that `buffer` holds the present W_eff."""
        group, index = self.place
        group.built(index, dtype)


class PackedProjections(nn.Module):
    """q, k, v on the slices of one packed weight [3 d, d] and bias [3 d] that this module holds.

    Children `q`, `k`, `v` are `PackedAdapted`s, `PackedSite`s, `nn.Linear`s or None.
    """

    names: ClassVar[tuple[str, str]]  # of the packed weight and bias
    q: nn.Module | None
    k: nn.Module | None
    v: nn.Module | None

    def slice(self, target: str) -> PackedSlice:
        """Where one of q, k, v has its frozen weight."""
        return PackedSlice(self, PACKED.index(target), self.names)

    @property
    def packed_weight(self) -> Tensor:
        """W of q, k, v [3 d, d]."""
        weight: Tensor = getattr(self, self.names[0])
        return weight

    @property
    def packed_bias(self) -> Tensor | None:
        """b of q, k, v [3 d] or None."""
        bias: Tensor | None = getattr(self, self.names[1])
        return bias

    @property
    def is_on(self) -> bool:
        """Whether the adapted computation is asked for here, not the pretrained one."""
        return all(module.switch.is_on for module in self.adapted() if isinstance(module, Adapted))

    def adapted(self) -> list[Any]:
        """What computes here and now in the place of `q`, `k`, `v`, where that is not the packed weight."""
        return [module for module in map(present, (self.q, self.k, self.v)) if module is not None]

    def sharing(self) -> AbstractContextManager[None]:
        """While it is open, adapted projections of one input are computed together."""
        adapted = [module for module in self.adapted() if isinstance(module, Adapted)]
        found = [module.shared_input for module in adapted if module.shared_input is not None]
        return found[0].calling() if found and not torch.compiler.is_compiling() else nullcontext()

    def is_kept(self) -> bool:
        """Whether one product with a packed W_eff gives q, k, v: it is kept, nothing needs a gradient or a mask."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or self.training or self.scope() is None:
            return False
        return all(
            isinstance(one, PackedAdapted) and one.builds and not (one._forward_hooks or one._forward_pre_hooks)
            for one in self.adapted()
        )

    def scope(self) -> Scope | None:
        """Where values of this attention are kept for longer than one call of the model; None where they are not."""
        scope = None if self.packed_weight.is_inference() else scope_of(self)
        return scope if scope is not None and scope.lasting else None

    def project_packed(self, x: Tensor) -> Tensor:
        """q, k, v [..., 3 d] of x by one product."""
        dtype = product_dtype(x)
        for module in self.adapted():
            assert isinstance(module, PackedAdapted)
            module.build(dtype)
        bias = None if self.packed_bias is None else self.packed_bias.to(dtype)
        return F.linear(x.to(dtype), self.packed_buffer(dtype, x.device, self.whose()), bias)

    def whose(self) -> Group | None:
        """The group of the adapter that computes here and now."""
        return next((module.place[0] for module in self.adapted() if isinstance(module, Adapted)), None)

    def packed_buffer(self, dtype: torch.dtype, device: torch.device, group: Group | None) -> Tensor:
        """W_eff of q, k, v [3 d, d] in `dtype`: adapted rows are the group's to write, the others hold W.

        Only where values are kept (`scope`).
        """
        scope, weight = self.scope(), self.packed_weight
        assert scope is not None

        def cast() -> tuple[Tensor, Tensor]:
            with torch.inference_mode(False), torch.no_grad():
                return weight.detach().to(device, dtype, copy=True), weight.detach()

        name = (id(self), "packed", dtype, threading.get_ident(), group)
        # The weight itself is kept beside its copy, so that no other comes to lie where it did.
        return scope.keep(name, (weight.data_ptr(), weight._version, device), cast, device)[0]

    def project_one(self, position: int, x: Tensor, together: bool) -> Tensor:
        """One of q, k, v, adapted or frozen; `together` says that all three read this x."""
        adapted = getattr(self, PACKED[position])
        if present(adapted) is not None:
            return adapted(x) if together or not isinstance(adapted, Site) else adapted.alone(x)
        frozen, dtype = self.slice(PACKED[position]), product_dtype(x)
        weight, bias = frozen.weight, frozen.bias
        castable = dtype != weight.dtype and not (weight.requires_grad or torch.compiler.is_compiling())
        if castable and self.scope() is not None:
            weight = frozen.rows(self.packed_buffer(dtype, x.device, self.whose()))  # cast once, not at every step
        return F.linear(x, weight, bias)


class PackedAttention(PackedProjections):
    """What every adapted packed attention shares: it adopts the parameters and children of the original.

    `out_proj` is the original module, a `MoraLinear` or a `Site`.
    """

    names: ClassVar[tuple[str, str]] = ("in_proj_weight", "in_proj_bias")
    in_proj_weight: Tensor
    in_proj_bias: Tensor | None
    out_proj: nn.Module

    def __init__(self, original: Any) -> None:
        super().__init__()
        self._original = (original,)
        for name, parameter in original._parameters.items():
            self.register_parameter(name, parameter)
        for name, module in original._modules.items():
            self.add_module(name, module)
        for name in ("in_proj_bias", "head_scale"):  # plain None where the original goes without
            if name not in self._parameters:
                self.register_parameter(name, None)
        for name in PACKED:
            self.register_module(name, None)
        self._buffers.update(original._buffers)
        self._non_persistent_buffers_set.update(original._non_persistent_buffers_set)
        for name, value in vars(original).items():  # `head_dim`, `batch_first` and what users keep there
            if name not in ("forward", "_compiled_call_impl"):
                self.__dict__.setdefault(name, value)
        share_hooks(self, original)
        self.train(original.training)

    @property
    def original(self) -> Any:
        """The module this one stands for; it shares every frozen parameter."""
        return self._original[0]

    @property
    def is_on(self) -> bool:
        """Whether the adapted computation is asked for here, not the pretrained one."""
        sites = [module for module in (self.q, self.k, self.v, self.out_proj) if isinstance(module, Site)]
        if sites and not torch.compiler.is_compiling() and all(site.present() is None for site in sites):
            return False  # the adapter that is active has no part here
        out = present(self.out_proj)
        return super().is_on and not (isinstance(out, Adapted) and not out.switch.is_on)

    def give_back(self) -> Any:
        """Return the original, holding the parameters as they are now (device, dtype and mode followed)."""
        original = self.original
        for name in original._parameters:
            original._parameters[name] = self._parameters[name]
        if isinstance(self.out_proj, Site):
            original.out_proj.weight, original.out_proj.bias = self.out_proj.weight, self.out_proj.bias
        original._buffers.update({name: self._buffers.get(name) for name in original._buffers})
        share_hooks(original, self)
        return original.train(self.training)

    def project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v as [batch, heads, length, d / heads]; what is not adapted is projected by the packed weight."""
        together = query is key and key is value
        if together and not self.adapted():
            flat = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        elif together and self.is_kept():
            flat = self.project_packed(query).chunk(3, dim=-1)
        else:
            with self.sharing() if together else nullcontext():
                flat = tuple(self.project_one(position, x, together) for position, x in enumerate((query, key, value)))
        q, k, v = (rearrange(x, "b l (h d) -> b h l d", h=self.num_heads) for x in flat)
        return q, k, v
