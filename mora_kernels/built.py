"""What one build of a group left, and how autograd goes back through it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mora_kernels.factors import Factors
from mora_kernels.kept import Scope
from mora_kernels.numerics import accumulation_dtype, full_precision, untracked


class Built(NamedTuple):
    """Equation (3) of one projection: u [in], U [out, r], V' [in, r] in float32, W_eff [out, in] as computed with."""

    u: Tensor
    left: Tensor
    right: Tensor
    effective: Tensor


class Values:
    """The engine that holds the values, and the fingerprints of the factors each projection was built from.

    It refers to no autograd graph, so that a graph may refer to it. `builds[i]` counts the builds of projection i,
    `marks[i]` those from other factors than before, as far as autograd counts changes.
    """

    def __init__(self, engine: Any, factors: list[Factors], parameters: list[Tensor]) -> None:
        self.engine, self.factors, self.parameters = engine, factors, parameters
        self.touching = [{id(tensor) for tensor in one.tensors()} for one in factors]
        self.keys: list[Any] = [None] * len(factors)
        self.marks, self.builds = [0] * len(factors), [0] * len(factors)

    def stamp(self, index: int) -> tuple[int, int]:
        """What a graph remembers of the values it was recorded with."""
        return self.marks[index], self.builds[index]

    def needs(self, index: int) -> bool:
        """Whether a factor of a projection needed a gradient when it was built."""
        return any(self.keys[index][1])

    def see_to(self, index: int, stamp: tuple[int, int], later: bool = False) -> None:
        """See to it that the values of a projection are there on the way back of a graph with this stamp.

        Built again meanwhile, they may be those of factors that nobody counted (an average that was swapped in, and out
        again): they are then built from what is there now, which is what autograd itself would read. With `later`,
        whether a factor was changed since is left to the shared node, which is asked before any factor has a gradient.

        Raises RuntimeError when a factor was changed as autograd counts.
        """
        mark, build = stamp
        if mark != self.marks[index]:
            raise RuntimeError(
                f"Group: a factor of projection {index} was changed after this graph was recorded and W_eff has been "
                "rebuilt since; expected backward before the next forward with new factors"
            )
        if not later and self.factors[index].versions() != self.keys[index][0]:
            raise RuntimeError(
                f"Group: a factor of projection {index} was modified in place between forward and backward; "
                "expected the optimizer to step after backward"
            )
        if build != self.builds[index]:
            with untracked(self.factors[index].weight):
                self.engine.build(self.factors, [index])
            self.builds[index] += 1


class Ticket:
    """One shared node: whether its backward has run, and the stamp of every projection that went through it."""

    def __init__(self, used: bool = False) -> None:
        self.used = used
        self.stamps: dict[int, tuple[int, int]] = {}


class Node(torch.autograd.Function):
    """All factors -> the thin tensors of all projections. Computes nothing forward; one build backward."""

    @staticmethod
    def forward(ctx: Any, values: Values, ticket: Ticket, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.values, ctx.ticket = values, ticket
        return tuple(thin.detach() for thin in values.engine.thin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        values: Values = ctx.values
        reached: set[int] = set()
        for index, grad in enumerate(grads):
            if grad is not None:
                values.see_to(index, ctx.ticket.stamps[index])
                reached |= values.touching[index]
        ctx.ticket.used = True
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
        ctx.values, ctx.index, ctx.stamp = values, index, values.stamp(index)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return F.linear(x, values.engine.whole(index), None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        values: Values = ctx.values
        needs_x, needs_bias, needs_thin, _, _ = ctx.needs_input_grad
        values.see_to(ctx.index, ctx.stamp, later=needs_thin)
        (x,) = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        grad_bias = None
        with full_precision(grad):
            inputs = x.reshape(-1, x.shape[-1]) if needs_thin else None
            grad_x, grad_thin = values.engine.linear_backward(ctx.index, rows, inputs, needs_x)
            if needs_x:
                grad_x = grad_x.view(*grad.shape[:-1], grad_x.shape[-1])
            if needs_bias:
                grad_bias = rows.sum(dim=0, dtype=accumulation_dtype(rows)).to(ctx.bias_dtype)
        return grad_x, grad_bias, grad_thin, None, None


class State:
    """One compute dtype of a group in one thread: its values, and the node that the forward calls of a step share."""

    def __init__(self, values: Values, identities: list[Any], epoch: int) -> None:
        self.values, self.identities, self.epoch = values, identities, epoch
        self.kept_in: list[Any] = [None] * len(identities)
        self.held: list[Any] = [None] * len(identities)
        self.capturing = False
        self.stream: Any = None
        self.ticket = Ticket(used=True)
        self.outputs: tuple[Tensor, ...] = ()

    def holds(self, index: int, scope: Scope | None, one: Factors, capturing: bool) -> bool:
        """Whether the values of a projection are those of these factors, made where they may be kept."""
        if scope is None or self.kept_in[index] != (scope, scope.generation) or self.capturing != capturing:
            return False
        return one.counted() and self.values.keys[index] == one.fingerprint()

    def made_in(self, index: int, scope: Scope, capturing: bool) -> bool:
        """Whether the values of a projection were made in this block, since everything was last forgotten in it."""
        return self.capturing == capturing and self.kept_in[index] == (scope, scope.generation)

    def thin(self, index: int) -> Tensor:
        """Return thin of a projection as an output of the shared node, a new one once that node's backward has run."""
        if self.ticket.used:
            self.ticket = Ticket()
            self.outputs = Node.apply(self.values, self.ticket, *self.values.parameters)
        self.ticket.stamps[index] = self.values.stamp(index)
        return self.outputs[index]

    def note(self, indices: Iterable[int], factors: list[Factors], scope: Scope | None, capturing: bool) -> None:
        """Record from what `indices` were built; a new value of one that went through the shared node ends that."""
        values, ended = self.values, self.capturing != capturing
        for index in indices:
            one = factors[index]
            before, key = values.keys[index], one.fingerprint()
            values.keys[index] = key
            values.builds[index] += 1
            if scope is not None:
                self.kept_in[index] = (scope, scope.generation)
            if scope is not None and scope.lasting:
                self.held[index] = one.aliases()  # so that no other tensor comes to lie where one of these did
            if before is not None and before != key:
                values.marks[index] += 1
                values.engine.release(index)
                ended = ended or index in self.ticket.stamps
        values.factors, self.capturing = factors, capturing
        if ended:
            self.ticket, self.outputs = Ticket(used=True), ()

    def begin(self, indices: Iterable[int]) -> None:
        """What these projections hold is not to be used until they are built."""
        for index in indices:
            self.kept_in[index] = self.held[index] = None

    def wait(self, device: torch.device, capturing: bool) -> None:
        """Let this stream wait for what another one still does with the values, without waiting for it here.

        A stream that is being captured waits for nothing outside: whoever captures has synchronised before.
        """
        if device.type == "cuda" and not capturing:
            stream = torch.cuda.current_stream(device)
            if self.stream is not None and stream != self.stream:
                stream.wait_stream(self.stream)
            self.stream = stream
