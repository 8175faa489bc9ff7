"""What one more modality costs: all projections of a layer of N towers of one width, built and differentiated together.

G is the mean of the others' Gram matrices. With N towers there are N (N - 1) / 2 pairs of them; what is done grows with
N: times N in projections, factors and gradients, and in nothing of the weights' size with the pairs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

import mora_kernels
from benchmarks import sizes
from benchmarks.case import Case, Provider, Shape
from benchmarks.levels.operations import available
from benchmarks.providers.ours import BACKENDS
from benchmarks.sites import NAMES, TENSORS, Site, doubled
from benchmarks.sizes import Scale
from mora_kernels.kept import keeping
from mora_kernels.testing import LINEAR_TOLERANCE, assert_parity, make_factors

NAME = "towers"
TITLE = "More towers"
PROVIDERS = BACKENDS
BASELINE = BACKENDS[0]
COUNTS, WIDTH, TARGETS = (2, 3, 4, 8), 512, 2
WORKS = ("build", "build backward")


def shapes(scale: Scale) -> list[Shape]:
    """Every number of towers, W_eff built, and the way back from the thin factors."""
    counts, width = ((2, 3), 16) if scale.smoke else (COUNTS, WIDTH)
    return [{"work": work, "towers": count, "width": width} for work in WORKS for count in counts]


def sites_of(count: int, width: int, device: str) -> list[Site]:
    """q and v of one block of every tower, which share their common factors."""
    generator = torch.Generator().manual_seed(1)
    names = [f"m{number}" for number in range(count)]
    commons = {
        name: (torch.randn(width, sizes.RANK, generator=generator) * sizes.RANK**-0.5).to(device).requires_grad_()
        for name in names
    }
    found = []
    for number, name in enumerate(names):
        for target in range(TARGETS):
            made = make_factors(width, (8,), sizes.RANK, alpha=sizes.ALPHA, rows=4, seed=10 * number + target)
            tensors = {kind: getattr(made, kind).detach().float().to(device) for kind in (*NAMES, *TENSORS)}
            one = Site(commons, name, tensors, sizes.ALPHA)
            one.gram_scale = 1 / (count - 1)
            found.append(one)
    return found


def build(shape: Shape, scale: Scale) -> Case:
    """The case of one shape."""
    sites = sites_of(shape["towers"], shape["width"], scale.device)
    providers, absent = available(scale, functools.partial(provider, sites, shape["work"] == "build backward"))
    return Case(NAME, shape, next(iter(providers)), providers, absent, None, shape["width"])


def leaves_of(sites: Sequence[Site]) -> list[Tensor]:
    """Every trainable tensor once."""
    return list({id(leaf): leaf for site in sites for leaf in site.leaves().values()}.values())


def provider(sites: Sequence[Site], backward: bool, backend: str) -> Provider:
    """A group of all projections: its build, or the way back as well."""
    group = mora_kernels.Group(sites, backend)
    leaves, generator = leaves_of(sites), torch.Generator().manual_seed(2)
    lengths = [sum(part.numel() for part in group.built(index)[:3]) for index in range(len(sites))]
    grads = [torch.randn(length, generator=generator).to(sites[0].weight.device) for length in lengths]

    def run() -> object:
        increment_version(sites[0].own["specific_b"])  # type: ignore[arg-type] # as after an optimizer's step
        with keeping([group]):
            if not backward:
                with torch.no_grad():
                    return [group.built(index) for index in range(len(sites))]
            thin = [torch.cat([part.flatten() for part in group.built(i)[:3]]) for i in range(len(sites))]
            return torch.autograd.grad(thin, leaves, grads)

    def check() -> None:
        """Output and every gradient of the projections against the specification in float64."""
        with keeping([group]):
            total = sum((group.linear(i, one.x, one.bias) * one.grad).sum() for i, one in enumerate(sites))
            found = torch.autograd.grad(total, leaves)  # type: ignore[arg-type]
        wide = doubled(sites)
        want = sum((specified(one) * one.grad).sum() for one in wide)
        expected = torch.autograd.grad(want, leaves_of(wide))  # type: ignore[arg-type]
        for number, (got, right) in enumerate(zip(found, expected, strict=True)):
            assert_parity(f"gradient {number}", got, right, LINEAR_TOLERANCE)

    owned = (*leaves, *(getattr(one, name) for one in sites for name in TENSORS), *grads)
    return Provider(run, check, lambda: owned, capturable=False)


def specified(one: Site) -> Tensor:
    """y by the specification."""
    arguments = one.x, one.weight, one.bias, *one.factors(), one.alpha
    return mora_kernels.mora_linear(*arguments, backend="reference", gram_scale=one.gram_scale)
