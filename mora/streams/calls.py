"""The routes of the forward calls that are running: read by a hook as a call begins, or given by the user."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from mora.streams.route import Reader, Route
from mora.system.hooks import Calls, library_hook

_given: ContextVar[tuple[tuple[object, Route], ...]] = ContextVar("mora.route", default=())
MOST = 64  # routes remembered for activation checkpointing


class Routes(Calls):
    """The route of the call of one model that runs here; shared by all projections of its stream.

    A hook before the model's forward call reads it. Activation checkpointing runs blocks again in a backward pass,
    outside of any call: the route is that of the forward calls since the last backward pass then, where they agree.

    Args:
        reader: of the model's arguments.
    """

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader = reader
        self._lock = threading.Lock()
        self._recent: list[Route] = []
        self._used = False

    def __getstate__(self) -> dict[str, Any]:
        return {"reader": self.reader}

    def __setstate__(self, content: dict[str, Any]) -> None:
        self.__init__(**content)  # type: ignore[misc]

    @classmethod
    def of(cls, module: nn.Module, reader: Reader) -> Routes:
        """Those of a model: that watch it already, or new ones."""
        for hook in module._forward_pre_hooks.values():
            if isinstance(found := getattr(hook, "__self__", None), cls):
                return found
        routes = cls(reader)
        routes.watch(module)
        return routes

    def watches(self, module: nn.Module) -> bool:
        """Whether these are the routes of a module's calls."""
        return any(getattr(hook, "__self__", None) is self for hook in module._forward_pre_hooks.values())

    def watch(self, module: nn.Module, first: bool = False) -> None:
        """See when a call begins, with what it is given, and when it ends."""
        module.register_forward_pre_hook(self.begin, prepend=first, with_kwargs=True)
        module.register_forward_hook(self.end, always_call=True)

    @library_hook
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def begin(self, module: nn.Module, args: Any = (), kwargs: Any = None) -> None:
        """A call begins: its route is that of its token ids."""
        self.calls.append(None)  # ended as every call is, whatever is raised here
        signature = inspect.signature(type(module).forward)
        arguments = signature.bind_partial(module, *args, **(kwargs or {})).arguments
        route = self.reader.read({**arguments, **arguments.get("kwargs", {})}) or self.given()
        if route is None:
            raise ValueError(
                "input_ids: got None, expected token ids [B, L], which say which token belongs to which modality; call "
                "the model within `with mora.route(model, ids):` where it is given inputs_embeds"
            )
        self.calls[-1] = route
        if torch.is_grad_enabled():
            self.remember(route)

    @library_hook
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def end(self, *_: Any) -> None:
        """The innermost call is over, or failed."""
        if self.calls:
            self.calls.pop()

    def given(self) -> Route | None:
        """What a block of `route` says here."""
        return next((route for routes, route in reversed(_given.get()) if routes is self), None)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def here(self, x: Tensor) -> Route:
        """The route of x [B, L, d], an input of a projection in the call that runs here.

        Raises RuntimeError where no call runs and nobody gave a route.
        """
        found: Route | None = (self.calls[-1] if self.calls else None) or self.given()
        if found is None and torch._C._current_graph_task_id() != -1:
            return self.again(x)
        if found is None:
            raise RuntimeError(
                "mora.route: got a call of a block of a single-stream model by itself, which does not say which token "
                "belongs to which modality; expected a call of the model, or one within `with mora.route(model, ids):`"
            )
        return found

    def remember(self, route: Route) -> None:
        """Keep the route of a forward call that may be run again in the backward pass."""
        with self._lock:
            if self._used:
                self._recent, self._used = [], False
            if not any(known.equals(route) for known in self._recent):
                self._recent = [*self._recent, route][-MOST:]

    def again(self, x: Tensor) -> Route:
        """The route of a block that a backward pass computes again; RuntimeError where several calls may be meant."""
        with self._lock:
            self._used = True
            fitting = [route for route in self._recent if route.fits(x)]
        if len(fitting) != 1:
            raise RuntimeError(
                f"mora.route: got a backward pass that computes a block again (activation checkpointing) after "
                f"{len(fitting)} forward calls with different routes, expected one forward call before each backward "
                "pass, and others under torch.no_grad()"
            )
        return fitting[0]


def routes_in(model: nn.Module) -> list[Routes]:
    """Those that routed projections of a model go by, each once."""
    held = (getattr(module, "routes", None) for module in model.modules())
    return list({id(one): one for one in held if isinstance(one, Routes)}.values())


@contextmanager
def route(model: nn.Module, ids: Tensor) -> Iterator[nn.Module]:
    """Within the block, calls of `model` that are given no token ids take their route from `ids`.

        with mora.route(llava, ids): llava(inputs_embeds=embeddings, attention_mask=mask)

    Calls that have token ids of their own (the later steps of `generate`) go by those. The block belongs to this thread
    (more exactly: this context).

    Args:
        model: a single-stream model, patched, or merged with one weight per modality.
        ids: token ids [B, L] of the embeddings it will be given.

    Raises:
        TypeError: `ids` are no whole numbers [B, L].
        ValueError: `model` holds no projection whose tokens go by modality.
    """
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point():
        got = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"ids: got {got}, expected token ids [B, L], whole numbers")
    every = routes_in(model)
    if not every:
        raise ValueError(f"model: got a {type(model).__name__} without a routed projection, expected a patched one")
    token = _given.set((*_given.get(), *((one, one.reader.of_ids(ids)) for one in every)))
    try:
        yield model
    finally:
        _given.reset(token)
