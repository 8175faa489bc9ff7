"""A frozen feed-forward layer that keeps one tensor for its backward pass, where autograd keeps two or three."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Elements of the wide tensor worked on at a time. On a CPU they then stay in its caches.
CHUNK = {"cpu": 1 << 20}
LARGE_CHUNK = 1 << 27


class FeedForward(torch.autograd.Function):
    """y = down(act(up(x))) over rows [N, d], all three frozen; keeps h = up(x) and computes act again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, up: nn.Linear, act: Callable[[Tensor], Tensor], down: nn.Linear) -> Tensor:
        ctx.up, ctx.act, ctx.down = up, act, down
        ctx.half = (x.device.type, torch.get_autocast_dtype(x.device.type), torch.is_autocast_enabled(x.device.type))
        h = up(x)
        ctx.save_for_backward(h)
        return torch.cat([down(act(part)) for part in parts(h)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (h,) = ctx.saved_tensors
        device, dtype, enabled = ctx.half
        found = []
        with torch.autocast(device, dtype=dtype, enabled=enabled):
            for part, outer in zip(parts(h), grad.split([len(part) for part in parts(h)]), strict=True):
                wide = F.linear(outer, ctx.down.weight.T)
                with torch.enable_grad():
                    part = part.detach().requires_grad_()
                    inner = ctx.act(part)
                (wide,) = torch.autograd.grad(inner, part, wide.to(inner.dtype))
                found.append(F.linear(wide, ctx.up.weight.T))
        return torch.cat(found).to(grad.dtype), None, None, None


def parts(h: Tensor) -> tuple[Tensor, ...]:
    """Rows [N, w] in chunks."""
    return h.split(max(1, CHUNK.get(h.device.type, LARGE_CHUNK) // h.shape[-1]))


def feed_forward(up: nn.Module, act: Callable[[Tensor], Tensor], down: nn.Module, x: Tensor) -> Tensor | None:
    """down(act(up(x))) [..., d], exact up to the order of sums; None unless both layers are plain and frozen."""
    if type(up) is not nn.Linear or type(down) is not nn.Linear or torch.compiler.is_compiling():
        return None
    layers = [layer for layer in (up, act, down) if isinstance(layer, nn.Module)]
    trained = any(parameter.requires_grad for layer in layers for parameter in layer.parameters())
    if trained or hooked(*layers) or not (torch.is_grad_enabled() and x.requires_grad):
        return None
    plain = act.forward if isinstance(act, nn.Module) else act  # nobody's hooks within the backward pass
    return FeedForward.apply(x.flatten(0, -2), up, plain, down).unflatten(0, x.shape[:-1])


def hooked(*layers: Any) -> bool:
    """Whether somebody watches a layer."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(layer, name, None) for layer in layers for name in names)
