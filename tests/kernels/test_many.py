"""More than two modalities: the mean of their Gram matrices, gradients by name, and work that grows with their number.

What grows is counted, not timed: launches, operators, and bytes that operators read and write.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mora_kernels
from mora_kernels import Group
from mora_kernels.kept import keeping
from mora_kernels.launches import counted, left_out
from mora_kernels.testing import LINEAR_TOLERANCE, WEIGHT_TOLERANCE, assert_parity, make_factors
from tests.kernels.test_group import BUILT, clear, gradients, loss, parameters, preset

COUNTS = (2, 3, 4, 8)


def towers(count, size=32, alike=True, **options):
    """Projections of `count` towers, two a tower, of one width or of as many widths; G is the mean over the others."""
    sizes = {f"m{number}": size if alike else size + number for number in range(count)}
    sites = preset(sizes, **options)
    for site in sites:
        site.gram_scale = 1 / (count - 1)
    return sites


def oracle(sites):
    """Every gradient by the specification, in float64, by name."""
    clear(sites)
    wide = {id(t): t.detach().double().requires_grad_() for t in parameters(sites).values()}
    total = 0
    for site in sites:
        own, others, *rest = site.factors()
        own, *rest = (None if part is None else wide[id(part)] for part in (own, *rest))
        tensors = [site.x.double(), site.weight.double(), site.bias.double(), own, [wide[id(o)] for o in others], *rest]
        y = mora_kernels.mora_linear(*tensors, site.alpha, backend="reference", gram_scale=site.gram_scale)
        total = total + (y * site.grad.double()).sum()
    total.backward()
    return {name: wide[id(tensor)].grad for name, tensor in parameters(sites).items()}


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("backend", [*BUILT, "reference"])
def test_the_mean_over_the_others(backend, count, alike):
    """Every gradient by its name; what the interpreter takes seconds for is smaller."""
    if backend == "triton" and (count == 8 or not alike) and count != 3 + 5 * alike:
        pytest.skip("several others of several widths are there with three towers, the most with eight alike")
    sites = towers(count, 16 if backend == "triton" else 32, alike, targets=1 if count > 3 else 2)
    want = oracle(sites)
    loss(Group(sites, backend), sites).backward()
    for name, value in gradients(sites).items():
        assert_parity(name, value, want[name], LINEAR_TOLERANCE)


@pytest.mark.parametrize("backend", BUILT)
def test_a_backward_pass_through_one_tower(backend):
    """S of every tower is reached through G of one; what the other towers own is not."""
    sites = towers(3, 16)
    want = oracle(sites)
    clear(sites)
    group = Group(sites, backend)
    with keeping([group]):
        loss(group, sites, indices=(0, 1)).backward(retain_graph=True)
        first = {name: None if grad is None else grad.clone() for name, grad in gradients(sites).items()}
        loss(group, sites, indices=range(2, 6)).backward()
    for name, value in gradients(sites).items():
        assert_parity(name, value, want[name], LINEAR_TOLERANCE)
    assert all(first[f"0.common.m{number}"].any() for number in range(3))
    own = [grad for name, grad in first.items() if "common.m" not in name and name[0] not in "01"]
    assert own and not any(grad is not None and grad.any() for grad in own)


@pytest.mark.parametrize("backend", ["reference", *BUILT])
def test_the_mean_is_the_sum_of_smaller_factors(backend):
    """Exact: S / sqrt(n) in the place of every other S."""
    one = make_factors(24, (16, 9, 31), rank=3, alpha=0.05)
    kind = torch.float32 if backend == "triton" else torch.float64
    mean = mora_kernels.effective_weight(*one.to(kind).arguments(), backend=backend, gram_scale=1 / 3)
    smaller = [other / 3**0.5 for other in one.other_common]
    want = mora_kernels.effective_weight(one.weight, one.common, smaller, *one.arguments()[3:], backend="reference")
    assert_parity("weight", mean, want, WEIGHT_TOLERANCE)
    total = mora_kernels.effective_weight(*one.arguments(), backend="reference")
    assert (mean.double() - total).norm() > 0.01 * total.norm()
    with pytest.raises(ValueError, match=r"^gram_scale: got nan, expected a finite number"):
        mora_kernels.effective_weight(*one.arguments(), backend=backend, gram_scale=float("nan"))


@pytest.mark.parametrize("count", COUNTS)
def test_one_launch_forward_and_one_backward(count, launches):
    sites = towers(count, 8, targets=1)
    group = Group(sites, "triton")
    with keeping([group]), left_out():  # told, not run: the interpreter takes seconds
        loss(group, sites).backward()
    assert launches.count("build_group_kernel") == launches.count("build_group_backward_kernel") == 1
    assert launches.count("gradient_kernel") == len(sites) == len(launches) - 2


class Bytes(TorchDispatchMode):
    """Adds up what operators read and write; views move nothing."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
            self.total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def grown(count, alike):
    """(operators, bytes) of a build of all projections and of its way back, in plain PyTorch."""
    found = []
    for mode in (counted, Bytes):
        sites = towers(count, size=128, alike=alike)
        group, leaves = Group(sites, "torch"), list(parameters(sites).values())
        with keeping([group]):
            group.built(0)
            ones = [[torch.ones_like(part) for part in group.built(index)[:3]] for index in range(len(sites))]
            for leaf in leaves:
                leaf.data = leaf.data.clone()
            with mode() as seen:
                built = [group.built(index)[:3] for index in range(len(sites))]
                torch.autograd.grad(sum(built, ()), leaves, sum(map(tuple, ones), ()))
        found.append(len(seen) if mode is counted else seen.total)
    return found


@pytest.mark.parametrize("alike", [True, False])
def test_operators_and_bytes_grow_with_the_number_of_towers(alike):
    """Operators with the towers, bytes with the elements of their weights: 28 pairs of towers would add more than 8."""
    operators, moved = ({count: grown(count, alike)[place] for count in COUNTS} for place in (0, 1))
    assert operators[8] - operators[4] == 4 * (operators[4] - operators[3])
    assert operators[8] <= 4.3 * operators[2]
    widths = {count: [128 + (0 if alike else number) for number in range(count)] for count in COUNTS}
    share = {count: moved[count] / sum(width**2 for width in widths[count]) for count in COUNTS}
    assert max(share.values()) < 1.03 * min(share.values())
