"""`Group`: the adapted projections of a model, built together, differentiated together, kept only by request."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mora_kernels import backend as backends
from mora_kernels.api import mora_linear
from mora_kernels.built import Built, Linear, State, Values
from mora_kernels.factors import Factors, distinct
from mora_kernels.kept import Scope, drop, scope_of
from mora_kernels.numerics import full_precision, product_dtype, untracked
from mora_kernels.parts import Apart, Parts, check_together
from mora_kernels.projection import Projection, outline, place, snapshot, watch_optimizers
from mora_kernels.shelf import Shelf
from mora_kernels.torch.together import Together, together
from mora_kernels.validation import check_factors, check_linear


class Group:
    """The adapted projections of a model: W_eff is built at every use, from what the factors hold then.

    Within `mora_kernels.kept.keeping` it is built once, and again only when autograd has counted a change. With
    gradients on, the forward calls of a step (one tower, then the other) share one autograd node, whose backward takes
    the gradients of all projections to all factors in one go. Every thread has buffers of its own; copies and pickles
    carry no built values. Where parameters are whole only while their module runs (FSDP2), projections that were whole
    together are built together, as a part of the group.

    Args:
        projections: objects with `weight`, `factors()` and `alpha` (see `mora_kernels.projection.Projection`), read
            at every call.
        backend: as in `effective_weight`; "reference" builds nothing ahead and keeps nothing.
    """

    def __init__(self, projections: Sequence[Projection], backend: str = "auto") -> None:
        self.projections, self.backend = list(projections), backend
        self._epoch = 0
        self._threads = threading.local()
        self._names: dict[tuple[str, torch.device, torch.dtype], str] = {}
        self.shelf: Shelf | None = None
        self.whole: Group | None = None  # what this is a part of
        self._parts = Parts(self.projections, self._made)

    def __getstate__(self) -> dict[str, Any]:
        return {"projections": self.projections, "backend": self.backend, "shelf": self.shelf}

    def __setstate__(self, content: dict[str, Any]) -> None:
        shelf = content.pop("shelf", None)
        self.__init__(**content)  # type: ignore[misc]
        self.shelf = shelf

    @property
    def _states(self) -> dict[tuple[torch.dtype, str], State]:
        """What this thread built, by compute dtype and backend."""
        return self._threads.__dict__.setdefault("states", {})

    def invalidate(self) -> None:
        """Forget every built value, of every thread."""
        self._epoch += 1
        self._states.clear()
        self._parts.clear()

    def drop(self) -> bool:
        """Let go of what this thread built; graphs of autograd keep theirs. False where a CUDA graph was captured."""
        if any(state.capturing for state in self._states.values()):
            return False
        self._states.clear()
        self._parts.clear()
        drop(self)
        return True

    def _state(self, indices: Sequence[int], dtype: torch.dtype) -> State | None:
        """Return values of these projections in `dtype` that are those of the factors now; None: the backend has none.

        Raises as `_check` does.
        """
        scope = self._scope()
        if self.shelf is not None:
            self.shelf.use(self, None if scope is None else scope.most)
        if scope is not None and not scope.lasting and (known := self._of_this_call(indices, dtype, scope)) is not None:
            return known
        found = {index: self._snapshot(index) for index in indices}
        first = found[indices[0]]
        where = (self.backend, first.weight.device, dtype)
        name = self._names.get(where) or self._names.setdefault(where, backends.explain(*where)[0])
        if name == "reference":
            return None
        capturing, state = is_capturing(first.weight.device), self._states.get((dtype, name))
        if state is not None and state.epoch != self._epoch:
            state = None
        if state is not None and scope is not None:
            state.wait(first.weight.device, capturing)
            if all(state.holds(i, scope, one, capturing) for i, one in found.items()):
                return state
        return self._build(name, dtype, state, found, scope, capturing)

    def _scope(self) -> Scope | None:
        """Where values of this group, or of what it is a part of, are kept."""
        return scope_of(self) if self.whole is None else self.whole._scope()

    def _snapshot(self, index: int) -> Factors:
        """Return the present tensors of a projection; those of a part lie elsewhere at every use."""
        one = snapshot(self.projections[index])
        return one if self.whole is None else one._replace(moves=True)

    def _made(self, projections: Sequence[Projection]) -> Group:
        """Return a part of this group; its backend reads tensors anew at every use, wherever they lie then."""
        part = Group(projections, "torch")
        part.whole = self
        return part

    def _of_this_call(self, indices: Sequence[int], dtype: torch.dtype, scope: Scope) -> State | None:
        """Return values that were made for all of these since a call of the model began: it has one set of weights."""
        for (kept_dtype, _), state in self._states.items():
            if kept_dtype == dtype and state.epoch == self._epoch:
                device = state.values.factors[indices[0]].weight.device
                capturing = is_capturing(device)
                if all(state.made_in(i, scope, capturing) for i in indices):
                    state.wait(device, capturing)
                    return state
        return None

    def _build(
        self,
        name: str,
        dtype: torch.dtype,
        state: State | None,
        found: dict[int, Factors],
        scope: Scope | None,
        capturing: bool,
    ) -> State:
        """Build those found, or all where one launch makes all of them and they may be kept, in the same buffers."""
        watch_optimizers()
        check_together(self.projections)
        projections, indices = self.projections, [*found]
        every, engine = range(len(self.projections)), backends.engine(name)
        wanted: Sequence[int] = indices
        if state is None or scope is not None:
            wanted, found = every, {i: found.get(i) or self._snapshot(i) for i in every}
        if state is not None and scope is not None and not engine.at_once:
            wanted = [i for i in every if i in indices or not state.holds(i, scope, found[i], capturing)]
        fresh = {i: place(projections[i], found[i], dtype) for i in wanted}
        device = fresh[indices[0]].weight.device
        with untracked(fresh[indices[0]].weight):
            if state is None or any(state.identities[i] != one.identity() for i, one in fresh.items()):
                more = {i: found.get(i) or self._snapshot(i) for i in every}
                fresh = {i: fresh.get(i) or place(projections[i], more[i], dtype) for i in every}
                state = self._new_state(name, dtype, list(fresh.values()))
                wanted = indices if scope is None and not engine.at_once else every
            factors = [fresh.get(i, known) for i, known in enumerate(state.values.factors)]
            state.wait(device, capturing)
            state.begin(wanted)
            state.values.engine.build(factors, wanted, lasting=scope is not None and scope.lasting)
        state.note(wanted, factors, scope, capturing)
        return state

    def _new_state(self, name: str, dtype: torch.dtype, factors: list[Factors]) -> State:
        """Return a state with buffers of its own, in which nothing is built."""
        self._check(factors)
        parameters = distinct(factors)
        values = Values(backends.engine(name)(factors, dtype, parameters), factors, parameters)
        state = State(values, [one.identity() for one in factors], self._epoch)
        self._states[dtype, name] = state
        return state

    def _check(self, factors: Sequence[Factors]) -> None:
        """Raise unless the projections can be built together."""
        for index, one in enumerate(factors):
            if any(hasattr(tensor, "device_mesh") for tensor in (one.weight, *one.tensors())):
                raise RuntimeError(
                    f"Group: a tensor of projection {index} is sharded (DTensor); a build needs whole factors: call "
                    "the model through the module that fully_shard was applied to last"
                )
            check_factors(one)
            if one.weight.device != factors[0].weight.device:
                raise ValueError(
                    f"Group: projection {index} is on {one.weight.device}, expected {factors[0].weight.device}"
                )

    def built(self, index: int, dtype: torch.dtype | None = None) -> Built:
        """Return u, U, V' and W_eff of a projection in `dtype` (default: that of its weight).

        u, U and V' carry gradients to the factors where those are on; W_eff carries none. All four are the group's own
        buffers: read them, do not write or keep them across a change of a factor.
        """
        state = self._state([index], dtype or outline(self.projections[index]).dtype)
        if state is None:
            raise ValueError(
                "backend: got 'reference', which builds nothing ahead; expected 'auto', 'torch' or 'triton'"
            )
        thin = self._thin(state, index)
        thin = state.values.engine.thin[index] if thin is None else thin
        u, left, right = state.values.engine.thin_of(index, thin)
        return Built(u, left, right, state.values.engine.whole(index))

    def _thin(self, state: State, index: int) -> Tensor | None:
        """Return thin with its gradient path, or None where no factor of the projection needs one."""
        if torch.is_grad_enabled() and state.values.needs(index):
            return state.thin(index)
        return None

    def linear(
        self,
        index: int,
        x: Tensor,
        bias: Tensor | None = None,
        dropout_p: float = 0.0,
        training: bool = True,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return equation (2), dropout(x) W_eff^T + b, of one projection, as `mora_kernels.mora_linear` does."""
        return self.linears([index], x, [bias], dropout_p, training, mask)[0]

    def linears(
        self,
        indices: Sequence[int],
        x: Tensor,
        biases: Sequence[Tensor | None],
        dropout_p: float = 0.0,
        training: bool = True,
        mask: Tensor | None = None,
    ) -> list[Tensor]:
        """Return equation (2) of several projections of one x (q, k, v): x is read once, every mask is drawn apart.

        `mask` [len(indices), *x.shape] of bool, True where an element survives, replaces the drawn masks: for tests.
        """
        if torch.compiler.is_compiling():
            return self._functional(indices, x, biases, dropout_p, training)
        dtype = product_dtype(x)
        weight = outline(self.projections[indices[0]])
        check_linear(x, weight, biases[0], dropout_p)
        try:
            state = None if self._parts.found else self._state(indices, dtype)
        except Apart:
            self._parts.find(indices)
        if self._parts.found:
            return self._parts.linears(indices, x, biases, dropout_p, training, mask)
        if state is None:
            return self._functional(indices, x, biases, dropout_p, training)
        fits = dtype == weight.dtype or getattr(self.projections[indices[0]], "origin", None) is not None
        if dtype == x.dtype and not fits and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"x: got dtype {x.dtype}, expected {weight.dtype}, that of weight (or run under autocast)")
        engine, drops, indices = state.values.engine, training and dropout_p > 0, tuple(indices)
        thins = [self._thin(state, index) for index in indices]
        with full_precision(x):
            inputs = engine.drop(x, dropout_p, len(indices), dtype, mask) if drops else x.to(dtype)
            if torch.is_grad_enabled():
                if all(thin is not None for thin in thins) and engine.together(indices) is not None:
                    return [*Together.apply(inputs, drops, state.values, indices, *biases, *thins)]
            elif engine.narrow(indices, x.numel() // max(1, x.shape[-1])) is not None:
                return [*together(inputs, drops, engine, indices, biases)[0]]
            inputs = inputs if drops else [inputs] * len(indices)
            return [self._one(state, *each) for each in zip(indices, inputs, biases, thins, strict=True)]

    def _one(self, state: State, index: int, x: Tensor, bias: Tensor | None, thin: Tensor | None) -> Tensor:
        """Return x W_eff^T + b: exactly one GEMM where nothing needs a gradient."""
        frozen = bias is None or not (bias.requires_grad and torch.is_grad_enabled())
        if frozen and bias is not None and bias.dtype != x.dtype:
            bias = self._cast(index, bias, x.dtype)
        if thin is None and frozen and not (x.requires_grad and torch.is_grad_enabled()):
            return F.linear(x, state.values.engine.whole(index), bias)
        return Linear.apply(x, bias, thin, state.values, index)

    def _cast(self, index: int, bias: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a frozen bias in another dtype; kept where values are kept."""
        scope = self._scope()
        if scope is None or bias.is_inference():
            return bias.detach().to(dtype)
        name, key = (id(self), "bias", index, dtype), (bias.data_ptr(), bias._version)
        return scope.keep(name, key, lambda: bias.detach().to(dtype), bias.device)

    def _functional(
        self, indices: Sequence[int], x: Tensor, biases: Sequence[Tensor | None], dropout_p: float, training: bool
    ) -> list[Tensor]:
        """Return the same by `mora_kernels.mora_linear`, one projection after another: what a compiler can trace."""
        results = []
        for index, bias in zip(indices, biases, strict=True):
            one = self.projections[index]
            factors, common_out = (*one.factors(), one.alpha), getattr(one, "common_out", None)
            weight, scale = one.weight, getattr(one, "gram_scale", 1.0)
            if getattr(one, "origin", None) is not None and not torch.is_autocast_enabled(x.device.type):
                weight = weight.to(x.dtype)
            options = dropout_p, training, self.backend, common_out, scale
            results.append(mora_linear(x, weight, bias, *factors, *options))
        return results


def is_capturing(device: torch.device) -> bool:
    """Whether what is launched on `device` now goes into a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
