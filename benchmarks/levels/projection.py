"""One adapted projection, forward and backward: the width of every CLIP, with dropout and without, with dX and without.

The input is float32 [batch, tokens, d]; under fp16 autocast on a GPU, as the recipe trains, plain float32 on a CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import increment_version

import mora_kernels
from benchmarks import sizes
from benchmarks.case import Case, Provider, Shape, Work
from benchmarks.providers import lora
from benchmarks.providers.official import official_linear
from benchmarks.providers.ours import kept_by, why_not
from benchmarks.sizes import Scale
from mora_kernels.testing import LINEAR_TOLERANCE, ProjectionInputs, assert_parity, make_factors

NAME = "projection"
TITLE = "One adapted projection, forward and backward"
BASELINE = "official"
PROVIDERS = ("official", "official compiled", "PEFT LoRA", "PEFT DoRA", "frozen nn.Linear", "torch", "triton")
COMPILED_FROM = {"cpu": 8, "cuda": 32}  # batch
Linear = Callable[[Tensor, float], Tensor]  # (x, dropout_p) -> y


def shapes(scale: Scale) -> list[Shape]:
    """Widths x batches x dropout x dX."""
    return [
        shape_of(width, batch, dropout, dx)
        for width in sizes.widths(scale)
        for batch in scale.batches("layer", (1, 16, 32, 256))
        for dropout in (sizes.DROPOUT, 0.0)
        for dx in (True, False)
        if not scale.smoke or dx == (dropout > 0)
    ]


def shape_of(width: sizes.Width, batch: int, dropout: float, dx: bool) -> Shape:
    """One shape: `width` is a tower's, `dx` whether the input needs a gradient."""
    return {
        "model": width.model,
        "modality": width.modality,
        "width": width.width,
        "other_width": width.other,
        "tokens": width.tokens,
        "batch": batch,
        "dropout": dropout,
        "dx": dx,
    }


class Inputs:
    """The tensors of one case, and how the results of a provider are compared with float64."""

    def __init__(self, shape: Shape, device: str) -> None:
        rows = shape["batch"] * shape["tokens"]
        self.wide = make_factors(shape["width"], (shape["other_width"],), sizes.RANK, alpha=sizes.ALPHA, rows=rows)
        self.factors = self.wide.to(torch.float32, device=device)
        self.dropout, self.dx, self.device = shape["dropout"], shape["dx"], device
        self.factors.bias.requires_grad_(False)
        self.factors.x.requires_grad_(self.dx)

    def trained(self, factors: ProjectionInputs) -> dict[str, Tensor]:
        """What gets a gradient, by name."""
        leaves = factors.leaves()
        return {name: leaf for name, leaf in leaves.items() if name != "bias" and (self.dx or name != "x")}

    def step(self, linear: Linear, leaves: dict[str, Tensor], dropout: float, half: bool) -> dict[str, Tensor]:
        """y and the gradients of `leaves`, by name."""
        with torch.autocast(self.device, dtype=torch.float16, enabled=half):
            y = linear(self.factors.x, dropout)
        gradients = torch.autograd.grad(y, list(leaves.values()), self.factors.grad.to(y.dtype))
        return {"y": y.detach(), **dict(zip(leaves, gradients, strict=True))}

    @functools.cached_property
    def oracle(self) -> dict[str, Tensor]:
        """y and every gradient of the specification in float64, without dropout."""
        wide = self.wide.to(torch.float64, device=self.device)
        y = mora_kernels.mora_linear(wide.x, wide.weight, wide.bias, *wide.arguments()[1:], backend="reference")
        leaves = wide.leaves()
        return {
            "y": y.detach(),
            **dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), wide.grad), strict=True)),
        }

    def provider(
        self,
        linear: Linear,
        oracle: Callable[[], dict[str, Tensor]],
        leaves: dict[str, Tensor],
        owned: tuple[Any, ...] = (),
        **options: Any,
    ) -> Provider:
        """A provider from its linear map, the oracle's results, and what it trains."""
        half = self.device == "cuda"

        def check() -> None:
            want = oracle()
            for autocast in (False, True) if half else (False,):
                table = {torch.float32: LINEAR_TOLERANCE[torch.float16 if autocast else torch.float32]}
                for name, value in self.step(linear, leaves, 0.0, autocast).items():
                    assert_parity(name, value.float(), want[name], table)

        everything = (*owned, *self.factors.leaves().values(), self.factors.weight, self.factors.grad)
        return Provider(
            run=lambda: self.step(linear, leaves, self.dropout, half),
            check=check,
            owned=lambda: everything,
            **options,
        )


def build(shape: Shape, scale: Scale) -> Case:
    """The case of one shape."""
    inputs = Inputs(shape, scale.device)
    factors, providers, absent = inputs.factors, {}, {}
    leaves = inputs.trained(factors)

    def official(x: Tensor, dropout: float) -> Tensor:
        return official_linear(x, factors.weight, factors.bias, *factors.arguments()[1:], dropout_p=dropout)

    providers["official"] = inputs.provider(official, lambda: inputs.oracle, leaves)
    if reason := why_not_compiled(shape, scale):
        absent["official compiled"] = reason
    else:
        compiled = torch.compile(official, dynamic=False)
        providers["official compiled"] = inputs.provider(compiled, lambda: inputs.oracle, leaves, eager=False)
    for name, dora in lora.NAMES.items():
        if lora.ABSENT:
            absent[name] = lora.ABSENT
        else:
            providers[name] = peft(inputs, shape, dora)
    providers["frozen nn.Linear"] = frozen(inputs)
    for backend in ("torch", "triton"):
        if reason := why_not(backend, scale):
            absent[backend] = reason
        else:
            providers[backend] = ours(inputs, leaves, backend)
    return Case(NAME, shape, BASELINE, providers, absent, work(shape, scale.device), shape["width"])


def why_not_compiled(shape: Shape, scale: Scale) -> str:
    """Why `torch.compile` is left out of a case, or an empty string."""
    if scale.smoke and (shape["dropout"] or not shape["dx"]):
        return "compiled in one case only in a smoke test"
    chosen = shape["model"] in sizes.PUBLISHED and shape["dx"] and shape["batch"] >= COMPILED_FROM[scale.device]
    if not (scale.smoke or chosen):
        return "compiled at the published widths, large batches and with dX only: it takes long"
    if scale.device == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except Exception:
            return "no C++ compiler for torch.compile"
    return ""


def ours(inputs: Inputs, leaves: dict[str, Tensor], backend: str) -> Provider:
    """What a patched model runs: a group of one, rebuilt at every call, as after an optimizer's step."""
    factors = inputs.factors
    site: Any = SimpleNamespace(weight=factors.weight, alpha=factors.alpha, factors=lambda: factors.arguments()[1:-1])
    group = mora_kernels.Group([site], backend)

    def linear(x: Tensor, dropout: float) -> Tensor:
        assert factors.specific_b is not None
        increment_version(factors.specific_b)
        return group.linear(0, x, factors.bias, dropout)

    return inputs.provider(linear, lambda: inputs.oracle, leaves, kept=lambda: kept_by(group))


def frozen(inputs: Inputs) -> Provider:
    """The floor: dropout and the frozen product, nothing to train; forward only where no dX is asked for."""
    factors = inputs.factors
    leaves = {"x": factors.x} if inputs.dx else {}

    def linear(x: Tensor, dropout: float) -> Tensor:
        return F.linear(F.dropout(x, dropout), factors.weight, factors.bias)

    def oracle() -> dict[str, Tensor]:
        wide = inputs.wide
        x, weight, bias, grad = (t.detach().to(inputs.device) for t in (wide.x, wide.weight, wide.bias, wide.grad))
        return {"y": F.linear(x, weight, bias), "x": grad @ weight}

    if inputs.dx:
        return inputs.provider(linear, oracle, leaves, least=False)
    half = inputs.device == "cuda"

    def forward() -> Tensor:
        with torch.autocast(inputs.device, dtype=torch.float16, enabled=half):
            return linear(factors.x, inputs.dropout)

    def check() -> None:
        assert_parity("y", linear(factors.x, 0.0), oracle()["y"], LINEAR_TOLERANCE)

    return Provider(forward, check, lambda: (factors.x, factors.weight, factors.bias), least=False)


def peft(inputs: Inputs, shape: Shape, dora: bool) -> Provider:
    """PEFT's adapter of the same total rank around the same frozen weight."""
    device, wide = inputs.device, inputs.wide
    linear = nn.Linear(shape["width"], shape["width"], device=device).requires_grad_(False)
    linear.weight.copy_(inputs.factors.weight)
    linear.bias.copy_(inputs.factors.bias)
    model = lora.adapt(nn.Sequential(linear), ["0"], 2 * sizes.RANK, 0.0, dora).train()
    (layer,) = lora.layers(model).values()
    (adapter,) = layer.active_adapters
    leaves = {**({"x": inputs.factors.x} if inputs.dx else {}), **lora.factors(layer)}

    def run(x: Tensor, dropout: float) -> Tensor:
        layer.lora_dropout[adapter] = nn.Dropout(dropout) if dropout else nn.Identity()
        return model(x)

    def oracle() -> dict[str, Tensor]:
        trained = {name: value.detach().double().requires_grad_() for name, value in lora.factors(layer).items()}
        x, weight, bias, grad = (t.detach().to(device) for t in (wide.x, wide.weight, wide.bias, wide.grad))
        x.requires_grad_()
        y = F.linear(x, lora.formula(weight, **trained), bias)
        gradients = torch.autograd.grad(y, [x, *trained.values()], grad)
        return {"y": y.detach(), **dict(zip(["x", *trained], gradients, strict=True))}

    return inputs.provider(run, oracle, leaves, owned=tuple(model.parameters()), least=False)


def work(shape: Shape, device: str) -> Work:
    """y = x W^T and Z = dY W with everything read and written once, and W_eff built: 2 (2 M d^2) flops.

    Without dX the second product is dW = dY^T x of the same size.
    """
    rows, width = shape["batch"] * shape["tokens"], shape["width"]
    size = 2 if device == "cuda" else 4
    activations = (6 if shape["dx"] else 5) * rows * width * size  # x twice, y, dY twice, dX
    return Work(4 * rows * width**2, activations + 6 * width**2 * size)
