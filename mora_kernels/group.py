"""`Group`: the adapted projections of a model, built together, kept until a factor changes, differentiated together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mora_kernels import backend as backends
from mora_kernels.api import mora_linear
from mora_kernels.precision import full_precision, product_dtype
from mora_kernels.projection import Factors, Projection, distinct, place, snapshot, watch_optimizers
from mora_kernels.validation import check_factors, check_linear


class Built(NamedTuple):
    """Equation (3) of one projection: u [d], U [d, r], V' [d, r] in float32, W_eff [d, d] in the compute dtype."""

    u: Tensor
    left: Tensor
    right: Tensor
    effective: Tensor


class Values:
    """What one build left: the engine that holds it, and the versions of the factors it was made from.

    It refers to no autograd graph, so that a graph may refer to it.
    """

    def __init__(self, engine: Any, factors: list[Factors], parameters: list[Tensor]) -> None:
        self.engine, self.factors, self.parameters = engine, factors, parameters
        self.touching = [{id(tensor) for tensor in one.tensors()} for one in factors]
        self.generation, self.keys = 0, [one.fingerprint() for one in factors]

    def check(self, generation: int) -> None:
        """Raise unless the values a graph was recorded with are still there."""
        if generation != self.generation:
            raise RuntimeError(
                "Group: a factor was changed after this graph was recorded and W_eff has been rebuilt since; "
                "expected backward before the next forward with new factors"
            )

    def check_versions(self) -> None:
        """Raise if a factor was changed in place after the forward pass."""
        for index, (one, key) in enumerate(zip(self.factors, self.keys, strict=True)):
            if one.fingerprint() != key:
                raise RuntimeError(
                    f"Group: a factor of projection {index} was modified in place between forward and backward; "
                    "expected the optimizer to step after backward"
                )


class Node(torch.autograd.Function):
    """All factors -> the thin tensors of all projections. Computes nothing forward; one build backward."""

    @staticmethod
    def forward(ctx: Any, values: Values, ticket: list[bool], *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.values, ctx.generation, ctx.ticket = values, values.generation, ticket
        return tuple(thin.detach() for thin in values.engine.thin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        values: Values = ctx.values
        values.check(ctx.generation)
        values.check_versions()
        ctx.ticket[0] = True
        reached: set[int] = set().union(*(t for t, g in zip(values.touching, grads, strict=True) if g is not None))
        if not reached:
            return (None,) * len(ctx.needs_input_grad)
        with full_precision(values.parameters[0]):
            results = values.engine.backward(grads)
        wanted = zip(values.parameters, results, ctx.needs_input_grad[2:], strict=True)
        return None, None, *(result if needed and id(tensor) in reached else None for tensor, result, needed in wanted)


class Linear(torch.autograd.Function):
    """y = x W_eff^T + b with W_eff at hand; the way back to x and to thin is the engine's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, thin: Tensor, values: Values, index: int) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[2] else None)
        ctx.values, ctx.generation, ctx.index = values, values.generation, index
        ctx.bias_dtype = None if bias is None else bias.dtype
        return F.linear(x, values.engine.effective[index], None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        values: Values = ctx.values
        values.check(ctx.generation)
        (x,) = ctx.saved_tensors
        needs_x, needs_bias, needs_thin, _, _ = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        grad_bias = None
        with full_precision(grad):
            inputs = x.reshape(-1, x.shape[-1]) if needs_thin else None
            grad_x, grad_thin = values.engine.linear_backward(ctx.index, rows, inputs, needs_x)
            if needs_x:
                grad_x = grad_x.view(grad.shape)
            if needs_bias:
                grad_bias = rows.sum(dim=0, dtype=torch.float32).to(ctx.bias_dtype)
        return grad_x, grad_bias, grad_thin, None, None


class State:
    """One compute dtype of a group: its values, and the node that the forward calls of a step share."""

    def __init__(self, values: Values, identity: tuple[Any, ...], capturing: bool) -> None:
        self.values, self.identity, self.capturing = values, identity, capturing
        self.ticket: list[bool] = [True]
        self.outputs: tuple[Tensor, ...] = ()
        self.biases: dict[int, tuple[Any, Tensor]] = {}

    def thin(self, index: int) -> Tensor:
        """Return thin of a projection as an output of the shared node, a new one once that node's backward has run."""
        if self.ticket[0]:
            self.ticket = [False]
            self.outputs = Node.apply(self.values, self.ticket, *self.values.parameters)
        return self.outputs[index]


class Group:
    """The adapted projections of a model: W_eff of all is built in one go and kept until a factor changes.

    With gradients on, the forward calls of a step (one tower, then the other) share one autograd node, whose backward
    takes the gradients of all projections to all factors in one go. Copies and pickles carry no built values.

    Args:
        projections: objects with `weight`, `factors()` and `alpha` (see `mora_kernels.projection.Projection`), read
            at every call.
        backend: as in `effective_weight`; "reference" builds nothing ahead and keeps nothing.
    """

    def __init__(self, projections: Sequence[Projection], backend: str = "auto") -> None:
        self.projections, self.backend = list(projections), backend
        self._states: dict[tuple[torch.dtype, str], State] = {}
        self._names: dict[tuple[str, torch.device, torch.dtype], str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_states": {}, "_names": {}}

    def invalidate(self) -> None:
        """Forget every built value: after a change autograd cannot see, through `.data` or a replayed CUDA graph."""
        self._states = {}

    def _state(self, index: int, dtype: torch.dtype) -> State | None:
        """Return up-to-date values for a projection in `dtype`; None where the backend keeps none."""
        one = snapshot(self.projections[index])
        where = (self.backend, one.weight.device, dtype)
        name = self._names.get(where) or self._names.setdefault(where, backends.explain(*where)[0])
        if name == "reference":
            return None
        capturing = one.weight.is_cuda and torch.cuda.is_current_stream_capturing()
        state = self._states.get((dtype, name))
        if state and state.capturing == capturing and state.values.keys[index] == one.fingerprint():
            return state
        return self._build(name, dtype, state, capturing)

    def _build(self, name: str, dtype: torch.dtype, state: State | None, capturing: bool) -> State:
        """Build every projection, in the buffers of `state` if the same tensors are there, else in new ones."""
        watch_optimizers()
        factors = [place(projection, snapshot(projection), dtype) for projection in self.projections]
        parameters = distinct(factors)
        identity = (
            *((id(tensor), tensor.shape, tensor.dtype, tensor.device) for tensor in parameters),
            *(one.buffer is not None and one.buffer.data_ptr() for one in factors),
        )
        with torch.inference_mode(False), torch.no_grad(), full_precision(parameters[0]):
            if state is None or state.identity != identity:
                self._check(factors)
                engine = backends.engine(name)(factors, dtype, parameters)
                state = State(Values(engine, factors, parameters), identity, capturing)
                self._states[dtype, name] = state
            values = state.values
            values.engine.build(factors)
            values.factors, values.keys = factors, [one.fingerprint() for one in factors]
        values.generation += 1
        state.ticket, state.outputs, state.capturing = [True], (), capturing
        return state

    def _check(self, factors: Sequence[Factors]) -> None:
        """Raise unless the projections can be built together."""
        for index, one in enumerate(factors):
            if any(hasattr(tensor, "device_mesh") for tensor in (one.weight, *one.tensors())):
                raise RuntimeError(
                    f"Group: a tensor of projection {index} is sharded (DTensor); a grouped build needs whole factors: "
                    "use DDP, or fully_shard the root module only"
                )
            check_factors(one.weight, *one[1:7], one.alpha)
            if one.weight.device != factors[0].weight.device:
                raise ValueError(
                    f"Group: projection {index} is on {one.weight.device}, expected {factors[0].weight.device}"
                )

    def built(self, index: int, dtype: torch.dtype | None = None) -> Built:
        """Return u, U, V' and W_eff of a projection in `dtype` (default: that of its weight).

        u, U and V' carry gradients to the factors where those are on; W_eff carries none. All four are the group's own
        buffers: read them, do not write or keep them across a change of a factor.
        """
        weight = self.projections[index].weight
        state = self._state(index, dtype or weight.dtype)
        if state is None:
            raise ValueError(
                "backend: got 'reference', which builds nothing ahead; expected 'auto', 'torch' or 'triton'"
            )
        thin = self._thin(state, index)
        thin, size = state.values.engine.thin[index] if thin is None else thin, weight.shape[0]
        left, right = thin[size:].view(2, size, -1)
        return Built(thin[:size], left, right, state.values.engine.effective[index])

    def _thin(self, state: State, index: int) -> Tensor | None:
        """Return thin with its gradient path, or None where no factor of the projection needs one."""
        one = state.values.factors[index]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in one.tensors()):
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
        states = [self._state(index, dtype) for index in indices]
        if states[0] is None:
            return self._functional(indices, x, biases, dropout_p, training)
        weight = self.projections[indices[0]].weight
        check_linear(x, weight, biases[0], dropout_p)
        if dtype == x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"x: got dtype {x.dtype}, expected {weight.dtype}, that of weight (or run under autocast)")
        with full_precision(x):
            if training and dropout_p > 0:
                inputs = states[0].values.engine.drop(x, dropout_p, len(indices), dtype, mask)
            else:
                inputs = [x.to(dtype)] * len(indices)
            return [self._one(*each) for each in zip(states, indices, inputs, biases, strict=True)]

    def _one(self, state: State | None, index: int, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return x W_eff^T + b: exactly one GEMM where nothing needs a gradient."""
        assert state is not None
        thin = self._thin(state, index)
        frozen = bias is None or not (bias.requires_grad and torch.is_grad_enabled())
        if frozen and bias is not None and bias.dtype != x.dtype:
            key = (bias.data_ptr(), 0 if bias.is_inference() else bias._version)
            if state.biases.get(index, (None,))[0] != key:
                state.biases[index] = (key, bias.detach().to(x.dtype))
            bias = state.biases[index][1]
        if thin is None and frozen and not (x.requires_grad and torch.is_grad_enabled()):
            return F.linear(x, state.values.engine.effective[index], bias)
        return Linear.apply(x, bias, thin, state.values, index)

    def _functional(
        self, indices: Sequence[int], x: Tensor, biases: Sequence[Tensor | None], dropout_p: float, training: bool
    ) -> list[Tensor]:
        """Return the same by `mora_kernels.mora_linear`, one projection after another: what a compiler can trace."""
        results = []
        for index, bias in zip(indices, biases, strict=True):
            one = self.projections[index]
            results.append(
                mora_linear(x, one.weight, bias, *one.factors(), one.alpha, dropout_p, training, backend=self.backend)
            )
        return results
