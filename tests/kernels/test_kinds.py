"""The torch path chooses by size: copies of small weights, no W_eff for few rows, norms from one product with W.

Each choice is forced here, at widths that take no time, and held against the specification in float64.
"""

import pytest
import torch

import mora_kernels
from mora_kernels import Group
from mora_kernels.kept import keeping
from mora_kernels.launches import counted
from mora_kernels.testing import LINEAR_TOLERANCE, WEIGHT_TOLERANCE, assert_parity, make_factors
from mora_kernels.torch import kinds, norms
from tests.kernels.test_group import clear, doubled, gradients, preset

ROWS = {"no rows": 0, "few rows": 11, "many rows": 60}


@pytest.fixture(params=["copies of small weights", "every weight by itself"])
def size(request, monkeypatch):
    if request.param == "every weight by itself":
        monkeypatch.setattr(kinds, "SMALL", 0)
    return request.param


def widened(rows, sizes=None, **options):
    """Two towers of two layers, x and its gradient of `rows` rows, a bias that trains beside one that does not."""
    sites = preset(sizes or {"image": 32, "text": 24}, layers=2, **options)
    generator = torch.Generator().manual_seed(rows)
    for number, site in enumerate(sites):
        width = site.weight.shape[0]
        site.x = torch.randn(rows, width, generator=generator)
        site.grad = torch.randn(rows, width, generator=generator)
        site.bias = None if number == 0 else site.bias.clone().requires_grad_(number % 2 == 1)
    for first, second in zip(sites[::2], sites[1::2], strict=True):
        second.x = first.x.requires_grad_()
    return sites


def masks_of(sites):
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(2, *site.x.shape, generator=generator) > 0.3 for site in sites[::2]]


def pairs(group, sites, masks):
    """The loss where q and v of one input are computed together, with given masks or without dropout."""
    total = 0
    for place, first in enumerate(range(0, len(sites), 2)):
        both, mask = [first, first + 1], None if masks is None else masks[place]
        p = 0.0 if mask is None else 0.3
        found = group.linears(both, sites[first].x, [sites[i].bias for i in both], p, True, mask)
        total = total + sum((y * sites[i].grad).sum() for i, y in zip(both, found, strict=True))
    return total


def oracle(sites, masks):
    """Every gradient by the specification in float64, by name; those of x and of the biases too."""
    sites, total, inputs = doubled(sites), 0, {}
    for number, site in enumerate(sites):
        x = inputs.setdefault(number // 2, sites[number - number % 2].x.detach().double().requires_grad_())
        site.bias = None if site.bias is None else site.bias.detach().double().requires_grad_(site.bias.requires_grad)
        dropped = x if masks is None else x * masks[number // 2][number % 2] / 0.7
        arguments = dropped, site.weight.double(), site.bias, *site.factors(), site.alpha
        total = total + (mora_kernels.mora_linear(*arguments, backend="reference") * site.grad.double()).sum()
    total.backward()
    return total, every(sites, list(inputs.values()))


def every(sites, inputs=None):
    inputs = [site.x for site in sites[::2]] if inputs is None else inputs
    found = {f"x{place}": x.grad for place, x in enumerate(inputs)}
    biases = {f"bias{number}": site.bias.grad for number, site in enumerate(sites) if site.bias is not None}
    return {**gradients(sites), **found, **{name: grad for name, grad in biases.items() if grad is not None}}


def y_of(site):
    """y of one projection by the specification, in float64."""
    bias = None if site.bias is None else site.bias.double()
    arguments = site.x.double(), site.weight.double(), bias, *site.factors(), site.alpha
    return mora_kernels.mora_linear(*arguments, backend="reference")


def check_every_gradient(sites, masks):
    want, exact = oracle(sites, masks)
    group = Group(sites, "torch")
    with keeping([group], lasting=False):
        total = pairs(group, sites, masks)
        total.backward()
    assert_parity("loss", total, want, {torch.float32: 1e-5})
    found = every(sites)
    assert {name for name, grad in found.items() if grad is not None} == {n for n, g in exact.items() if g is not None}
    for name, grad in found.items():
        if grad is not None:
            assert_parity(name, grad, exact[name], LINEAR_TOLERANCE)


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("options", [{}, {"specific": False}, {"gram": False}, {"rank": 7}], ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_every_gradient(size, rows, options, dropped):
    sites = widened(ROWS[rows], **options)
    check_every_gradient(sites, masks_of(sites) if dropped else None)


@pytest.mark.parametrize("rows", ROWS)
def test_towers_of_one_width_and_two_alphas(size, rows):
    """One kind, of which every second pair is built with another alpha."""
    sites = widened(ROWS[rows], sizes={"image": 32, "text": 32})
    for first in (2, 3, 6, 7):
        sites[first].alpha = 0.05
    check_every_gradient(sites, None)


@pytest.mark.parametrize("rows", ROWS)
def test_kept_and_not_and_without_gradients_are_the_same(size, rows):
    """Each way to one y: W_eff kept, built for one call, not made at all; alone or with its neighbour."""
    sites = widened(ROWS[rows])
    group, site = Group(sites, "torch"), sites[2]
    exact = y_of(site)
    biases = [sites[2].bias, sites[3].bias]
    with torch.no_grad():
        found = {"alone": group.linear(2, site.x, site.bias), "together": group.linears([2, 3], site.x, biases)[0]}
        with keeping([group]):
            found["kept"] = group.linears([2, 3], site.x, biases)[0]
        with keeping([group], lasting=False):
            found["one call"] = group.linears([2, 3], site.x, biases)[0]
    found["with gradients"] = group.linears([2, 3], site.x, biases)[0]
    with torch.inference_mode():
        found["inference"] = group.linears([2, 3], site.x, biases)[0]
    for name, y in found.items():
        assert_parity(name, y, exact, LINEAR_TOLERANCE)


@pytest.mark.parametrize("rows", ROWS)
def test_a_change_reaches_whatever_was_made_before(size, rows):
    sites = widened(ROWS[rows])
    group, site = Group(sites, "torch"), sites[3]
    for number in range(3):
        with torch.no_grad():
            site.own["specific_b"].add_(0.1 * number)
            site.weight.mul_(1 + 0.1 * number)
        for gradients_on in (True, False):
            with torch.set_grad_enabled(gradients_on), keeping([group], lasting=False):
                _, y = group.linears([2, 3], site.x, [sites[2].bias, site.bias])
            assert_parity("y", y, y_of(site), LINEAR_TOLERANCE)


def test_results_are_no_views_and_may_be_changed_in_place(size):
    sites = widened(11)
    q, v = Group(sites, "torch").linears([0, 1], sites[0].x, [None, sites[1].bias])
    before = v.detach().clone()
    (q.mul_(2) + v).sum().backward()
    assert torch.equal(v, before)
    assert sites[0].x.grad.isfinite().all()


def test_one_of_two_results_is_used(size):
    """The other gets no gradient, and its projection none."""
    sites = widened(11)
    group = Group(sites, "torch")
    _, v = group.linears([2, 3], sites[2].x, [sites[2].bias, sites[3].bias])
    (v * sites[3].grad).sum().backward()
    got = gradients(sites)
    clear(sites)
    (group.linear(3, sites[2].x, sites[3].bias) * sites[3].grad).sum().backward()
    for name, grad in gradients(sites).items():
        if grad is None or not grad.any():
            assert got[name] is None or not got[name].any(), name
        else:
            assert_parity(name, got[name], grad.double(), LINEAR_TOLERANCE)


def test_projections_of_two_kinds_share_an_input(size):
    """q of one rank beside v of another go one by one."""
    sites = widened(11)
    x, sites[1] = sites[0].x, preset({"image": 32, "text": 24}, rank=7)[1]
    got = Group(sites, "torch").linears([0, 1], x, [sites[0].bias, sites[1].bias])
    for site, y in zip(sites, got, strict=False):
        site.x = x
        assert_parity("y", y, y_of(site), LINEAR_TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_column_that_cancels_is_summed_itself(dtype, monkeypatch):
    """W = -alpha C in some columns of one of three projections: that one alone is summed directly."""
    wide = [make_factors(24, (16,), rank=3, alpha=0.1, seed=seed) for seed in range(3)]
    update = wide[1].common @ mora_kernels.gram(wide[1].other_common[0]) @ wide[1].common.T
    noise = torch.randn(24, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wide[1].weight[:, ::5] = (1e-4 * noise - 0.1 * update)[:, ::5]
    sites = [one.to(dtype) for one in wide]
    alone, direct = [], norms.direct

    def seen(weight, *rest):
        alone.append(weight)
        return direct(weight, *rest)

    monkeypatch.setattr(norms, "direct", seen)
    built = [mora_kernels.effective_weight(*one.arguments(), backend="torch") for one in sites]
    assert len(alone) == 1 and torch.equal(alone[0], sites[1].weight)
    for number, (one, weight) in enumerate(zip(sites, built, strict=True)):
        exact = mora_kernels.effective_weight(*one.to(torch.float64).arguments(), backend="reference")
        lost = {torch.float32: 1e-3, torch.float64: 1e-9}  # by the rounding of W and of C, whatever adds them up
        assert_parity("weight", weight, exact, lost if number == 1 else WEIGHT_TOLERANCE)


def test_no_weight_is_made_for_few_rows(monkeypatch):
    monkeypatch.setattr(kinds, "SMALL", 0)
    for rows, whole in ((31, False), (32, True)):
        sites = widened(rows)
        group = Group(sites, "torch")
        with keeping([group], lasting=False):
            pairs(group, sites, None).backward()
        made = [state.values.engine.effective[0] is not None for state in group._states.values()]
        assert made == [whole], rows


def test_operators_of_small_projections():
    """Two towers of four layers, q and v: no more operators a projection than PEFT's LoRA has, 17."""
    sites = preset({"image": 32, "text": 32}, layers=4)
    for first, second in zip(sites[::2], sites[1::2], strict=True):
        second.x = first.x.requires_grad_()
    group = Group(sites, "torch")

    def step():
        clear(sites)
        with keeping([group], lasting=False):
            found = [group.linears([i, i + 1], sites[i].x, [None, None], 0.1) for i in range(0, len(sites), 2)]
            sum(y.sum() for both in found for y in both).backward()

    step()
    with counted() as names:
        step()
    assert len(names) <= 17 * len(sites), len(names) / len(sites)
