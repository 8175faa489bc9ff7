"""The operations one by one: a Gram matrix, one W_eff, and the eight W_eff of ViT-B/16 as the recipe adapts it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

import mora_kernels
from benchmarks import sizes
from benchmarks.case import Case, Provider, Shape, Work
from benchmarks.providers.official import official_weight
from benchmarks.providers.ours import BACKENDS, why_not
from benchmarks.sizes import Scale
from mora_kernels.kept import keeping
from mora_kernels.testing import LINEAR_TOLERANCE, WEIGHT_TOLERANCE, ProjectionInputs, assert_parity, make_factors

NAME = "operations"
TITLE = "Single operations"
BASELINE = "official"
PROVIDERS = ("official", *BACKENDS)
FLOAT = 4  # bytes; the operations compute in float32 everywhere


def shapes(scale: Scale) -> list[Shape]:
    """The Gram matrix and one W_eff at every width, forward and backward; the published eight together."""
    found: list[Shape] = []
    for width in sizes.widths(scale):
        common = {"model": width.model, "modality": width.modality, "width": width.width, "other_width": width.other}
        found += [{"operation": name, **common} for name in ("gram", "weight", "weight backward")]
    first = sizes.widths(scale)[0]
    widths = {"model": first.model, "image": first.width, "text": first.other, "projections": 2 if scale.smoke else 8}
    return [*found, *({"operation": name, **widths} for name in ("build", "build backward"))]


def build(shape: Shape, scale: Scale) -> Case:
    """The case of one shape."""
    kinds = {"gram": gram, "weight": weight, "weight backward": weight}
    return kinds.get(shape["operation"], grouped)(shape, scale)


def compared(
    results: Callable[[], dict[str, Tensor]], oracle: Callable[[], dict[str, Tensor]], table: dict[torch.dtype, float]
) -> Callable[[], None]:
    """A check of named results against the oracle's."""

    def check() -> None:
        want = oracle()
        for name, value in results().items():
            assert_parity(name, value, want[name], table)

    return check


def available(scale: Scale, make: Callable[[str], Provider]) -> tuple[dict[str, Provider], dict[str, str]]:
    """Our backends: those that run, and why the others do not."""
    reasons = {backend: why_not(backend, scale) for backend in BACKENDS}
    providers = {backend: make(backend) for backend, reason in reasons.items() if not reason}
    return providers, {backend: reason for backend, reason in reasons.items() if reason}


def gram(shape: Shape, scale: Scale) -> Case:
    """S^T S of one factor [d, r]."""
    factor = make_factors(shape["width"], rank=sizes.RANK).common.to(scale.device)
    narrow = factor.float()

    def provider(run: Callable[[], Tensor]) -> Provider:
        check = compared(lambda: {"gram": run()}, lambda: {"gram": factor.T @ factor}, WEIGHT_TOLERANCE)
        return Provider(run, check, lambda: (narrow,))

    ours, absent = available(scale, lambda b: provider(functools.partial(mora_kernels.gram, narrow, backend=b)))
    size, rank = narrow.shape
    work = Work(2 * size * rank**2, FLOAT * (size * rank + rank**2))
    return Case(NAME, shape, BASELINE, {"official": provider(lambda: narrow.T @ narrow), **ours}, absent, work)


def weight(shape: Shape, scale: Scale) -> Case:
    """W_eff of one projection [d, d]; backward: the way from its gradient to every factor too."""
    backward = shape["operation"] == "weight backward"
    wide = make_factors(shape["width"], (shape["other_width"],), sizes.RANK, alpha=sizes.ALPHA, rows=1)
    factors = wide.to(torch.float32, device=scale.device)
    grad = torch.randn(shape["width"], shape["width"], generator=torch.Generator().manual_seed(1)).to(scale.device)

    def results(compose: Callable[..., Tensor], one: ProjectionInputs) -> dict[str, Tensor]:
        if not backward:
            with torch.no_grad():
                return {"weight": compose(*one.arguments())}
        leaves = {name: leaf for name, leaf in one.leaves().items() if name not in ("x", "bias")}
        made = compose(*one.arguments())
        gradients = torch.autograd.grad(made, list(leaves.values()), grad.to(made.dtype))
        return {"weight": made.detach(), **dict(zip(leaves, gradients, strict=True))}

    def oracle() -> dict[str, Tensor]:
        reference = functools.partial(mora_kernels.effective_weight, backend="reference")
        return results(reference, wide.to(torch.float64, device=scale.device))

    def provider(compose: Callable[..., Tensor]) -> Provider:
        run = functools.partial(results, compose, factors)
        owned = (*factors.leaves().values(), factors.weight, grad)
        return Provider(run, compared(run, oracle, LINEAR_TOLERANCE), lambda: owned)

    ours, absent = available(
        scale, lambda backend: provider(functools.partial(mora_kernels.effective_weight, backend=backend))
    )
    providers = {"official": provider(official_weight), **ours}
    return Case(NAME, shape, BASELINE, providers, absent, least([shape["width"]], backward), shape["width"])


def grouped(shape: Shape, scale: Scale) -> Case:
    """All W_eff of the recipe (two layers, two towers, two targets) as a patched model builds them."""
    backward = shape["operation"] == "build backward"
    widths = (shape["image"], shape["text"])
    made = [
        make_factors(width, (other,), sizes.RANK, alpha=sizes.ALPHA, rows=1, seed=seed)
        for seed, (width, other) in enumerate([widths, widths[::-1]] * (shape["projections"] // 2))
    ]
    factors = [one.to(torch.float32, device=scale.device) for one in made]
    generator = torch.Generator().manual_seed(2)
    thin_grads = [torch.randn(one.weight.shape[0] * (1 + 4 * sizes.RANK), generator=generator) for one in made]
    thin_grads = [grad.to(scale.device) for grad in thin_grads]

    def official() -> object:
        with torch.no_grad():
            return {str(i): official_weight(*one.arguments()) for i, one in enumerate(factors)}

    def oracle() -> dict[str, Tensor]:
        wide = [one.to(torch.float64, device=scale.device) for one in made]
        weights = [mora_kernels.effective_weight(*one.arguments(), backend="reference") for one in wide]
        return {str(i): weight for i, weight in enumerate(weights)}

    def ours(backend: str) -> Provider:
        return group_provider(factors, backend, thin_grads if backward else None, oracle)

    providers, absent = available(scale, ours)
    sides = [one.weight.shape[0] for one in made]
    if backward:  # the official sequence has no such step: its autograd goes through the d x d weights
        baseline = next(iter(providers))
        return Case(NAME, shape, baseline, providers, absent, least(sides, backward))
    run: Any = official
    providers = {"official": Provider(run, compared(run, oracle, LINEAR_TOLERANCE)), **providers}
    return Case(NAME, shape, BASELINE, providers, absent, least(sides, backward))


def group_provider(
    factors: Sequence[ProjectionInputs],
    backend: str,
    grads: Iterable[Tensor] | None,
    oracle: Callable[[], dict[str, Tensor]],
) -> Provider:
    """A `Group` of all projections: its build, or the way back from gradients of u, U and V to those of the factors."""
    sites: list[Any] = [
        SimpleNamespace(weight=one.weight, alpha=one.alpha, factors=functools.partial(middle, one)) for one in factors
    ]
    group = mora_kernels.Group(sites, backend)
    leaves = [leaf for one in factors for name, leaf in one.leaves().items() if name not in ("x", "bias")]

    def run() -> object:
        increment_version(factors[0].specific_b)  # type: ignore[arg-type] # as after an optimizer's step
        with keeping([group]):  # each once, in one launch where the backend can, as in a step of `mora train`
            return [group.built(i) for i in range(len(factors))] if grads is None else backward()

    def backward() -> tuple[Tensor, ...]:
        thin = [torch.cat([part.flatten() for part in group.built(i)[:3]]) for i in range(len(factors))]
        return torch.autograd.grad(thin, leaves, list(grads or ()))

    def check() -> None:
        want = oracle()
        for index in range(len(factors)):
            assert_parity(f"W_eff {index}", group.built(index).effective, want[str(index)], LINEAR_TOLERANCE)
        if grads is not None:
            check_backward()

    def check_backward() -> None:
        """(4) against autograd through equation (3) written out: W_eff = W * u + U V^T."""
        for index, one in enumerate(factors):
            dense = torch.randn(one.weight.shape, generator=torch.Generator().manual_seed(index)).to(one.weight.device)
            built = group.built(index)
            through = (one.weight * built.u + built.left @ built.right.T).double()
            names = [name for name in one.leaves() if name not in ("x", "bias")]
            got = torch.autograd.grad(through, [one.leaves()[name] for name in names], dense.double())
            wide = one.to(torch.float64, device=str(one.weight.device))
            made = mora_kernels.effective_weight(*wide.arguments(), backend="reference")
            want = torch.autograd.grad(made, [wide.leaves()[name] for name in names], dense.double())
            for name, value, expected in zip(names, got, want, strict=True):
                assert_parity(f"{name} {index}", value, expected, LINEAR_TOLERANCE)

    return Provider(run, check, capturable=False)


def middle(one: ProjectionInputs) -> tuple[Any, ...]:
    """The arguments of `effective_weight` between `weight` and `alpha`."""
    return one.arguments()[1:-1]


def least(sides: list[int], backward: bool) -> Work:
    """W read and W_eff written once, two updates of rank 4 composed; backward reads W and dW_eff once more."""
    passes = 4 if backward else 2
    products = 8 if backward else 4  # a low-rank product forward, two backward, for each of two branches
    return Work(
        sum(products * 2 * side**2 * sizes.RANK for side in sides), FLOAT * passes * sum(side**2 for side in sides)
    )
