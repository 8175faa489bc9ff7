"""One attention block, attention and MLP, with q and v adapted, in both libraries; forward and backward with dX."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

import mora
from benchmarks import models
from benchmarks.case import Case, Provider, Shape
from benchmarks.models import Adapted
from benchmarks.providers import lora
from benchmarks.providers.ours import BACKENDS, kept_by, why_not
from benchmarks.sizes import Scale
from mora.adapters.record import is_patched
from mora.towers.find import cut_towers_of
from mora_kernels.testing import LINEAR_TOLERANCE, assert_parity

NAME = "attention"
TITLE = "One attention block, q and v adapted, forward and backward"
BASELINE = "official"
PROVIDERS = ("official", *lora.NAMES, lora.PACKED, "frozen block", *BACKENDS)
# A block adds a softmax and a layer norm to the product: their float32 rounding is some ten times the product's.
TOLERANCE = {dtype: 10 * bound for dtype, bound in LINEAR_TOLERANCE.items()}


def shapes(scale: Scale) -> list[Shape]:
    """Both libraries and both towers of ViT-B/16."""
    model = "toy" if scale.smoke else "ViT-B/16"
    towers = [(library, modality) for library in models.FAMILIES for modality in ("image", "text")]
    return [
        {"model": model, "library": library, "modality": modality, "batch": batch, "dropout": 0.1}
        for library, modality in (towers[::3] if scale.smoke else towers)  # each library and each tower once
        for batch in scale.batches("layer", (32, 256))
    ]


def build(shape: Shape, scale: Scale) -> Case:
    """The case of one shape."""
    base = models.clip(shape["model"], shape["library"], scale.device, layers=1)
    size = models.SIZES[shape["model"]]
    width, tokens = (
        (size.vision[0], (size.image // size.patch) ** 2 + 1)
        if shape["modality"] == "image"
        else (size.text[0], size.context)
    )
    x, grad = (torch.randn(shape["batch"], tokens, width, device=scale.device) for _ in range(2))
    x.requires_grad_()
    wide = models.adapt(base, "official", 1)
    wide.model.double()
    oracle = results(wide, shape["modality"], x.double(), grad.double())
    providers, absent = {}, {}

    def add(name: str, adapted: Adapted, want: Callable[[], dict[str, Tensor]]) -> None:
        providers[name] = provider(adapted, shape["modality"], x, grad, want, scale.device)

    add("official", models.adapt(base, "official", 1), lambda: oracle)
    for name in (*lora.NAMES, lora.PACKED):
        if reason := lora.ABSENT or why_not_peft(name, shape["library"]):
            absent[name] = reason
        else:
            adapted = models.adapt(base, name, 1)
            add(name, adapted, merged(base, adapted, shape["modality"], x, grad))
    frozen = models.adapt(base, "frozen", 1)
    add("frozen block", frozen, merged(base, frozen, shape["modality"], x, grad))
    for backend in BACKENDS:
        if reason := why_not(backend, scale):
            absent[backend] = reason
        else:
            add(backend, models.adapt(base, "ours", 1, backend), lambda: oracle)
    return Case(NAME, shape, BASELINE, providers, absent, square=width)


def why_not_peft(name: str, library: str) -> str:
    """Why one of PEFT's adapters is left out, or an empty string."""
    if name == lora.PACKED:
        return "" if library == "open_clip" else "this library does not pack q, k, v"
    return "PEFT cannot adapt q and v of a packed q, k, v one by one" if library == "open_clip" else ""


def call(adapted: Adapted, modality: str, x: Tensor) -> Tensor:
    """The only block of one tower on hidden rows [B, L, d]."""
    tower = cut_towers_of(adapted.model)[modality]
    output = adapted.blocks[modality](x, **tower.block_arguments(adapted.model, x))
    return output if isinstance(output, Tensor) else output[0]


def results(adapted: Adapted, modality: str, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """Output and gradients of a block without dropout, by name; a tower's own adapters only."""
    adapted.model.eval()
    x = x.detach().requires_grad_()
    y = call(adapted, modality, x)
    gradients = torch.autograd.grad(y, [x, *adapted.trained.values()], grad.to(y.dtype), allow_unused=True)
    named = {"y": y.detach(), **dict(zip(["x", *adapted.trained], gradients, strict=True))}
    return {name: value for name, value in named.items() if value is not None}


def merged(
    base: nn.Module, adapted: Adapted, modality: str, x: Tensor, grad: Tensor
) -> Callable[[], dict[str, Tensor]]:
    """The results of a plain block that holds the adapted weights by their own formula, in float64."""

    def oracle() -> dict[str, Tensor]:
        plain = models.adapt(models.with_weights(base, adapted.formula()), "frozen", 1)
        return results(plain, modality, x.double(), grad.double())

    return oracle


def provider(
    adapted: Adapted, modality: str, x: Tensor, grad: Tensor, want: Callable[[], dict[str, Tensor]], device: str
) -> Provider:
    """A provider from an adapted one-block CLIP."""
    model, trained = adapted.model, list(adapted.trained.values())
    first = [p for name, p in mora.adapter_parameters(model)][:1] if is_patched(model) else []

    def run() -> object:
        for parameter in first:
            increment_version(parameter)  # as after an optimizer's step
        with torch.autocast(device, dtype=torch.float16, enabled=device == "cuda"):
            y = call(adapted, modality, x)
        return torch.autograd.grad(y, [x, *trained], grad.to(y.dtype), allow_unused=True)

    def check() -> None:
        model.eval()
        expected = want()
        for name, value in results(adapted, modality, x, grad).items():
            if name in expected:
                assert_parity(name, value, expected[name], TOLERANCE)
        model.train()

    return Provider(run, check, lambda: (x, grad, *model.parameters()), lambda: kept(model))


def kept(model: nn.Module) -> list[Tensor]:
    """The W_eff that a patched model keeps between its calls, outside autograd."""
    if not is_patched(model):
        return []
    _, projection = next(iter(model.mora.projections()))
    return kept_by(projection.place[0])
