"""What only a whole device shows: one mask in forward, backward, recomputation and replay; streams, devices, 0 rows.

Every check raises AssertionError at the first wrong tensor, or `NotHereError` where it cannot be made.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import mora_kernels
from benchmarks.measure.timing import captured
from benchmarks.sites import Site, doubled, preset
from mora_kernels.kept import keeping
from mora_kernels.testing import LINEAR_TOLERANCE, assert_parity, make_factors

P = 0.25  # probability of dropping an element


def one_site(device: str) -> Site:
    """One projection: of ViT-B/16's text width on a GPU, of a toy's in the interpreter."""
    image, text, rows = (16, 24, 5) if device == "cpu" else (512, 768, 65)
    return preset(image, text, rows=rows, device=device, layers=1, targets=1)[0]


class NotHereError(Exception):
    """Why a check cannot be made here."""


class Dropped:
    """One projection with dropout: y and dX of a step, and the mask that its backward pass used."""

    def __init__(self, device: str) -> None:
        self.site = one_site(device)
        self.group = mora_kernels.Group([self.site], "triton")
        self.x = self.site.x.clone().requires_grad_()
        (wide,) = doubled([self.site])
        self.weight = mora_kernels.effective_weight(wide.weight, *wide.factors(), wide.alpha, backend="reference")
        self.wide = wide

    def linear(self, x: Tensor) -> Tensor:
        """The projection as a model calls it."""
        return self.group.linear(0, x, self.site.bias, P)

    def step(self, linear: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """(y, dX) of one forward and backward pass."""
        y = (linear or self.linear)(self.x)
        (dx,) = torch.autograd.grad(y, self.x, self.site.grad)
        return y.detach(), dx

    def mask(self, y: Tensor, dx: Tensor) -> Tensor:
        """The mask of the backward pass, once y and dX are those of float64 under that very mask."""
        mask = dx != 0  # a sum of products of drawn numbers: 0 where it was dropped only
        kept = mask.double() / (1 - P)
        want = torch.nn.functional.linear(self.wide.x * kept, self.weight, self.wide.bias)
        assert_parity("y under the mask of its backward pass", y, want, LINEAR_TOLERANCE)
        assert_parity("dX", dx, (self.wide.grad @ self.weight) * kept, LINEAR_TOLERANCE)
        share, five_sigma = float(mask.double().mean()), 5 * (P * (1 - P) / mask.numel()) ** 0.5
        assert abs(share - (1 - P)) < five_sigma, f"kept: got a share of {share:.4f}, expected {1 - P}"
        return mask


def same_mask_in_backward(device: str) -> str:
    """Forward and backward agree; a seed repeats the mask; another call draws another."""
    one = Dropped(device)
    masks = []
    for _ in range(2):
        torch.manual_seed(3)
        masks.append(one.mask(*one.step()))
    assert torch.equal(*masks), "dropout does not repeat under torch.manual_seed"
    assert not torch.equal(masks[0], one.mask(*one.step())), "two calls drew the same mask"
    return ""


def same_mask_recomputed(device: str) -> str:
    """Activation checkpointing, with either implementation, recomputes under the mask of the first pass."""
    one = Dropped(device)
    torch.manual_seed(3)
    plain = one.step()
    for reentrant in (False, True):
        torch.manual_seed(3)
        y = checkpoint(one.linear, one.x, use_reentrant=reentrant)
        one.x.grad = None
        y.backward(one.site.grad)  # reentrant checkpointing refuses torch.autograd.grad
        mask = one.mask(y.detach(), one.x.grad)
        assert torch.equal(mask, one.mask(*plain)), f"another mask under checkpoint(use_reentrant={reentrant})"
    return ""


def same_mask_replayed(device: str) -> str:
    """Each replay of a CUDA graph draws anew, and its backward pass uses the mask of its forward pass."""
    if device == "cpu":
        raise NotHereError("needs a GPU")
    one, found = Dropped(device), {}

    def run() -> None:
        found["y"], found["dx"] = one.step()

    replay, masks = captured(run), []
    for _ in range(3):
        replay()
        torch.cuda.synchronize()
        masks.append(one.mask(found["y"], found["dx"]))
    assert not torch.equal(masks[0], masks[1]), "two replays drew the same mask"
    assert not torch.equal(masks[1], masks[2]), "two replays drew the same mask"
    return ""


def no_rows(device: str) -> str:
    """Nothing in: nothing out, a gradient of zeros to every factor, and no launch over 0 programs."""
    site = one_site(device)
    group, shape = mora_kernels.Group([site], "triton"), (2, 0, site.weight.shape[0])
    for p in (0.0, P):
        empty = torch.empty(shape, device=device, requires_grad=True)
        y = group.linear(0, empty, site.bias, p)
        assert y.shape == shape, f"y: got shape {tuple(y.shape)}, expected {shape}"
        y.sum().backward()
        assert empty.grad is not None
        assert empty.grad.shape == empty.shape
        for name, leaf in site.leaves().items():
            assert leaf.grad is None or not leaf.grad.any(), f"{name}: got a gradient from 0 rows"
    return ""


def results(group: mora_kernels.Group, sites: list[Site]) -> list[Tensor]:
    """y and the gradients of every projection after one step."""
    leaves = {id(leaf): leaf for site in sites for leaf in site.leaves().values()}
    ys = [group.linear(i, site.x, site.bias) for i, site in enumerate(sites)]
    total = sum((y.float() * site.grad).sum() for y, site in zip(ys, sites, strict=True))
    return [*(y.detach() for y in ys), *torch.autograd.grad(total, list(leaves.values()))]


def second_stream(device: str) -> str:
    """Built on one stream that is late, used on another at once: the second waits for the first."""
    if device == "cpu":
        raise NotHereError("needs a GPU")
    sites = preset(256, 192, rows=33, device=device)
    group = mora_kernels.Group(sites, "triton")
    want = results(group, sites)
    torch.cuda.synchronize()
    group.invalidate()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with keeping([group]):
        with torch.cuda.stream(side):
            torch.cuda._sleep(100_000_000)  # cycles: tens of milliseconds
            late = results(group, sites)
        at_once = results(group, sites)
    torch.cuda.synchronize()
    for where, got in (("the late stream", late), ("the other stream", at_once)):
        for index, (value, expected) in enumerate(zip(got, want, strict=True)):
            assert_parity(f"tensor {index} on {where}", value, expected, LINEAR_TOLERANCE)
    return ""


def second_device(device: str) -> str:
    """Projections on a device that is not the current one."""
    if device == "cpu" or torch.cuda.device_count() < 2:
        raise NotHereError("needs a second GPU")
    sites = preset(256, 192, rows=33, device="cuda:1")
    with torch.cuda.device(0):
        got = results(mora_kernels.Group(sites, "triton"), sites)
    wide = doubled(sites)
    for index, (value, want) in enumerate(zip(got, results(mora_kernels.Group(wide, "reference"), wide), strict=True)):
        assert_parity(f"tensor {index}", value, want, LINEAR_TOLERANCE)
    return ""


def compiled_linear(device: str, smoke: bool) -> str:
    """`torch.compile(fullgraph=True)` of mora_linear: y and every gradient; Inductor on a GPU, traced only on a CPU."""
    size, other = (24, 16) if smoke else (768, 512)
    factors = make_factors(size, (other,), rows=33).to(torch.float32, device=device)
    wide = factors.to(torch.float64, device=device)
    arguments = factors.arguments()[1:]

    def linear(x: Tensor) -> Tensor:
        return mora_kernels.mora_linear(x, factors.weight, factors.bias, *arguments, backend="triton")

    y = torch.compile(linear, fullgraph=True, backend="aot_eager" if smoke else "inductor")(factors.x)
    y.backward(factors.grad)
    want = mora_kernels.mora_linear(wide.x, wide.weight, wide.bias, *wide.arguments()[1:], backend="reference")
    want.backward(wide.grad)
    assert_parity("y", y, want, LINEAR_TOLERANCE)
    for name, leaf in factors.leaves().items():
        assert_parity(name, leaf.grad, wide.leaves()[name].grad, LINEAR_TOLERANCE)
    return ""


def compiled_dropout(device: str, smoke: bool) -> str:
    """A compiled step draws one mask for both passes, and another at the next call."""
    one = Dropped(device)
    site = one.site

    def linear(x: Tensor) -> Tensor:
        factors = (*site.factors(), site.alpha)
        return mora_kernels.mora_linear(x, site.weight, site.bias, *factors, dropout_p=P, backend="triton")

    compiled = torch.compile(linear, backend="aot_eager" if smoke else "inductor")
    first, second = (one.mask(*one.step(compiled)) for _ in range(2))
    assert not torch.equal(first, second), "two calls drew the same mask"
    return ""
