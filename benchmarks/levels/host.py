"""The host's part of a step: a model's adapted projections, so small that calling operators is all that takes time.

On a GPU the device waits for this at small batches. "triton, launches left out" does everything the fused path does on
the host but the launches themselves, which it counts: what a GPU step takes at least, before any GPU was asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mora_kernels
from benchmarks import sizes
from benchmarks.case import Case, Provider, Shape
from benchmarks.providers import lora
from benchmarks.sizes import Scale
from mora_kernels import launches
from mora_kernels.kept import keeping
from mora_kernels.testing import LINEAR_TOLERANCE, ProjectionInputs, assert_parity, make_factors

NAME = "host"
TITLE = "The host's part of a step"
BASELINE = "PEFT LoRA"
STUBBED = "triton, launches left out"
PROVIDERS = ("PEFT LoRA", "PEFT DoRA", "frozen nn.Linear", "torch", STUBBED)
WIDTH, ROWS, LAYERS = 64, 4, 4


def shapes(scale: Scale) -> list[Shape]:
    """q and v of two towers of four layers, in training and without gradients."""
    layers = 1 if scale.smoke else LAYERS
    size = {"width": WIDTH, "rows": ROWS, "projections": 4 * layers}
    return [{**size, "gradients": gradients} for gradients in (True, False)]


class Inputs:
    """Frozen projections and factors in pairs of layers, q and v of one layer reading the same x."""

    def __init__(self, shape: Shape, device: str) -> None:
        count = shape["projections"]
        made = [make_factors(WIDTH, (WIDTH,), sizes.RANK, alpha=1.0, rows=ROWS, seed=seed) for seed in range(count)]
        self.factors = share([one.to(torch.float32, device=device) for one in made])
        self.x, self.gradients = self.factors[0].x, shape["gradients"]
        for one in self.factors:
            one.bias.requires_grad_(False)

    def step(self, outputs: Callable[[float], list[Tensor]], leaves: list[Tensor], dropout: float) -> list[Tensor]:
        """All y, and the gradients of x and the leaves where they are asked for."""
        if not self.gradients:
            with torch.no_grad():
                return outputs(0.0)
        found = outputs(dropout)
        return [*found, *torch.autograd.grad(torch.cat(found).sum(), [self.x, *leaves])]


def share(factors: list[ProjectionInputs]) -> list[ProjectionInputs]:
    """Let image q, image v, text q, text v of a layer share common factors, one a tower, as a model's do."""
    found = []
    for index, one in enumerate(factors):
        own, other = factors[index - index % 2], factors[index - index % 2 + (2 if index % 4 < 2 else -2)]
        found.append(ProjectionInputs(**{**vars(one), "common": own.common, "other_common": [other.common]}))
    return found


def build(shape: Shape, scale: Scale) -> Case:
    """The case of one shape."""
    inputs = Inputs(shape, scale.device)
    providers, absent = {}, {}
    for name, dora in lora.NAMES.items():
        if lora.ABSENT:
            absent[name] = lora.ABSENT
        else:
            providers[name] = peft(inputs, scale.device, dora)
    providers["frozen nn.Linear"] = frozen(inputs)
    providers["torch"] = ours(inputs, "torch")
    if scale.device == "cpu":
        providers[STUBBED] = ours(inputs, "triton")
    else:
        absent[STUBBED] = "a GPU times the launches themselves: see the other levels"
    return Case(NAME, shape, BASELINE if BASELINE in providers else "frozen nn.Linear", providers, absent)


def frozen(inputs: Inputs) -> Provider:
    """The floor: dropout and the frozen products."""

    def outputs(dropout: float) -> list[Tensor]:
        return [F.linear(F.dropout(inputs.x, dropout), one.weight, one.bias) for one in inputs.factors]

    def check() -> None:
        for one, y in zip(inputs.factors, outputs(0.0), strict=True):
            exact = F.linear(inputs.x.double(), one.weight.double(), one.bias.double())
            assert_parity("y", y.detach(), exact.detach(), LINEAR_TOLERANCE)

    return Provider(lambda: inputs.step(outputs, [], sizes.DROPOUT), check)


def ours(inputs: Inputs, backend: str) -> Provider:
    """A group of all projections in one call of a model, as the classifier and a patched CLIP call it."""
    sites: list[Any] = [
        SimpleNamespace(weight=one.weight, alpha=one.alpha, factors=lambda one=one: one.arguments()[1:-1])
        for one in inputs.factors
    ]
    group = mora_kernels.Group(sites, backend)
    names = ("common", "specific_a", "specific_b", "common_magnitude", "specific_magnitude")
    every = [getattr(one, name) for one in inputs.factors for name in names]
    leaves = list({id(leaf): leaf for leaf in every}.values())

    def outputs(dropout: float) -> list[Tensor]:
        found: list[Tensor] = []
        for index in range(0, len(sites), 2):
            biases = [inputs.factors[index].bias, inputs.factors[index + 1].bias]
            found += group.linears([index, index + 1], inputs.x, biases, dropout)
        return found

    def run(dropout: float = sizes.DROPOUT) -> list[Tensor]:
        with keeping([group], lasting=False):
            return inputs.step(outputs, leaves, dropout)

    if backend == "triton":
        return Provider(lambda: without_launches(group, run), lambda: check_launches(inputs, group, run))
    return Provider(run, lambda: check(inputs, run(0.0), leaves))


def without_launches(group: mora_kernels.Group, run: Callable[[], Any]) -> Any:
    """`run` with every launch of a kernel left out: its results are whatever memory held."""
    with launches.left_out(), on_the_triton_path(group):
        return run()


@contextmanager
def on_the_triton_path(group: mora_kernels.Group) -> Iterator[None]:
    """Within the block a group takes the Triton path on a CPU, where `explain` would rightly refuse."""
    place = (group.backend, torch.device("cpu"), torch.float32)
    group._names[place] = "triton"
    try:
        yield
    finally:
        del group._names[place]


def check_launches(inputs: Inputs, group: mora_kernels.Group, run: Callable[[], Any]) -> None:
    """One launch builds, one leads back; two a layer and tower for dropout, one a projection for the thin gradient.

    That the values are right is proven where the kernels run: tests/triton, `benchmarks/gpu.sh`.
    """
    with launches.counted(library=False) as names:
        without_launches(group, run)
    projections = len(inputs.factors)
    expected = {"build_group_kernel": 1}
    if inputs.gradients:
        expected |= {"build_group_backward_kernel": 1, "dropout_kernel": projections}
        expected |= {"gradient_kernel": projections}
    found = {name: names.count(name) for name in names}
    assert found == expected, f"got launches {found}, expected {expected}"


def check(inputs: Inputs, results: list[Tensor], leaves: list[Tensor]) -> None:
    """Every y and every gradient against the specification in float64."""
    x = inputs.x.detach().double().requires_grad_()
    outputs = [
        mora_kernels.mora_linear(x, one.weight.double(), one.bias.double(), *doubled(one), backend="reference")
        for one in inputs.factors
    ]
    want = [y.detach() for y in outputs]
    if inputs.gradients:
        want += torch.autograd.grad(torch.cat(outputs).sum(), [x, *leaves])
    for number, (got, expected) in enumerate(zip(results, want, strict=True)):
        assert_parity(f"result {number}", got.detach(), expected.double(), LINEAR_TOLERANCE)


def doubled(one: ProjectionInputs) -> tuple[Any, ...]:
    """The arguments of `effective_weight` but the weight, in float64, with gradient paths to the float32 leaves."""
    _, common, others, *own, alpha = one.arguments()
    return common.double(), [other.double() for other in others], *(part.double() for part in own), alpha


def peft(inputs: Inputs, device: str, dora: bool) -> Provider:
    """PEFT's adapters of the same total rank around the same frozen weights."""
    linears = nn.ModuleList()
    for one in inputs.factors:
        linear = nn.Linear(WIDTH, WIDTH, device=device).requires_grad_(False)
        linear.weight.copy_(one.weight)
        linear.bias.copy_(one.bias)
        linears.append(linear)
    model = lora.adapt(linears, [str(index) for index in range(len(linears))], 2 * sizes.RANK, 0.0, dora).train()
    layers = list(lora.layers(model).values())
    leaves = [leaf for layer in layers for leaf in lora.factors(layer).values()]

    def outputs(dropout: float) -> list[Tensor]:
        return [layer(inputs.x) for layer in model]

    def masked(dropout: float) -> None:
        for layer in layers:
            layer.lora_dropout[layer.active_adapters[0]] = nn.Dropout(dropout) if dropout else nn.Identity()

    def check() -> None:
        masked(0.0)
        found = inputs.step(outputs, leaves, 0.0)
        for layer, one, y in zip(layers, inputs.factors, found, strict=False):
            wide = {name: value.detach().double() for name, value in lora.factors(layer).items()}
            moved = lora.formula(one.weight.double(), **wide)
            exact = F.linear(inputs.x.detach().double(), moved, one.bias.double())
            assert_parity("y", y.detach(), exact, LINEAR_TOLERANCE)
        masked(sizes.DROPOUT if inputs.gradients else 0.0)

    return Provider(lambda: inputs.step(outputs, leaves, sizes.DROPOUT), check)
