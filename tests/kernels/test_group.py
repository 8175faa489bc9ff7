"""`Group`: parity with single projections, nothing kept unasked, one build where it is, autograd's odd paths."""

import contextvars
import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

import mora_kernels
from mora_kernels import Group
from mora_kernels.kept import forget, keeping
from mora_kernels.launches import counted
from mora_kernels.testing import LINEAR_TOLERANCE, assert_parity, make_factors

BACKENDS = ["torch", "triton", "reference"]
BUILT = ["torch", "triton"]


class Site:
    """A projection with its own specific factors; common factors are shared with others."""

    def __init__(self, commons, modality, seed, size, rank=4, gram=True, specific=True, alpha=0.02):
        made = make_factors(size, (8,), rank=rank, alpha=alpha, seed=seed, rows=11)
        self.commons, self.modality, self.gram, self.alpha = commons, modality, gram, alpha
        self.weight, self.bias, self.x, self.grad = (
            tensor.detach().float() for tensor in (made.weight, made.bias, made.x, made.grad)
        )
        names = ("specific_a", "specific_b", "common_magnitude", "specific_magnitude")
        self.own = {name: getattr(made, name).float().requires_grad_() for name in names}
        if not specific:
            self.own.update(specific_a=None, specific_b=None, specific_magnitude=None)

    def factors(self):
        others = [value for name, value in self.commons.items() if name != self.modality]
        own = self.own
        return (
            self.commons[self.modality],
            others if self.gram else None,
            own["specific_a"],
            own["specific_b"],
            own["common_magnitude"],
            own["specific_magnitude"],
        )


def preset(sizes=None, layers=1, targets=2, **options):
    """Projections like those of ViT-B/16: two towers, two targets, small widths; four in a layer."""
    sizes = sizes or {"image": 24, "text": 16}
    generator = torch.Generator().manual_seed(5)
    sites = []
    for layer in range(layers):
        commons = {m: (torch.randn(d, 4, generator=generator) / 2).requires_grad_() for m, d in sizes.items()}
        for number, (modality, size) in enumerate(sizes.items()):
            for target in range(targets):
                sites.append(Site(commons, modality, 100 * layer + 10 * number + target, size, **options))
    return sites


def parameters(sites):
    found = {}
    for index, site in enumerate(sites):
        for name, tensor in site.commons.items():
            found.setdefault(id(tensor), (f"{index}.common.{name}", tensor))
        for name, tensor in site.own.items():
            if tensor is not None:
                found[id(tensor)] = (f"{index}.{name}", tensor)
    return dict(found.values())


def gradients(sites):
    return {name: tensor.grad for name, tensor in parameters(sites).items()}


def doubled(sites):
    """Copies with factors in float64, shared as these are."""
    sites = copy.deepcopy(sites)
    for site in {id(s.commons): s for s in sites}.values():
        for name, tensor in site.commons.items():
            site.commons[name] = tensor.detach().double().requires_grad_()
    for site in sites:
        site.own = {n: t if t is None else t.detach().double().requires_grad_() for n, t in site.own.items()}
    return sites


def expected(sites):
    """Loss and gradients by the specification, in float64."""
    sites, total = doubled(sites), 0
    for site in sites:
        y = mora_kernels.mora_linear(
            site.x.double(), site.weight.double(), site.bias.double(), *site.factors(), site.alpha, backend="reference"
        )
        total = total + (y * site.grad.double()).sum()
    total.backward()
    return total, gradients(sites)


def loss(group, sites, indices=None):
    total = 0
    for index, site in enumerate(sites):
        if indices is None or index in indices:
            total = total + (group.linear(index, site.x, site.bias) * site.grad).sum()
    return total


def clear(sites):
    for tensor in parameters(sites).values():
        tensor.grad = None


@pytest.mark.parametrize("options", [{}, {"gram": False}, {"specific": False}, {"rank": 17}], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_gradient_of_eight_projections(backend, options):
    sites = preset({"image": 48, "text": 32}, layers=2, **options)
    group = Group(sites, backend)
    total = loss(group, sites)
    total.backward()
    want, grads = expected(sites)
    assert_parity("loss", total, want, {torch.float32: 1e-5})
    for name, value in gradients(sites).items():
        if options.get("gram") is False and grads[name] is None:
            assert value is None, name
            continue
        assert_parity(name, value, grads[name], LINEAR_TOLERANCE)


@pytest.mark.parametrize("backend", BUILT)
def test_three_modalities_of_odd_widths(backend):
    sites = preset(sizes={"image": 33, "text": 17, "audio": 50})
    total = loss(Group(sites, backend), sites)
    total.backward()
    _, grads = expected(sites)
    for name, value in gradients(sites).items():
        assert_parity(name, value, grads[name], LINEAR_TOLERANCE)


def test_one_launch_forward_and_one_backward(launches):
    sites = preset(layers=2)
    group = Group(sites, "triton")
    with keeping([group]):
        loss(group, sites).backward()
    assert launches.count("build_group_kernel") == 1
    assert launches.count("build_group_backward_kernel") == 1
    assert launches.count("gradient_kernel") == 8
    assert len(launches) == 10


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_launches_of_a_projection(dropout_p):
    """q and v of one attention, dX included: at most 6 launches a projection, library products included."""
    sites = preset()[:2]
    group = Group(sites, "triton")
    x = sites[0].x.requires_grad_()
    biases = [site.bias for site in sites]
    with keeping([group]):
        group.linears([0, 1], x, biases)  # the build, counted apart
        with counted() as names:
            outputs = group.linears([0, 1], x, biases, dropout_p=dropout_p)
            torch.autograd.backward(outputs, [site.grad for site in sites])
    assert names.count("build_group_backward_kernel") == 1, "one for the whole group, not one a projection"
    assert len(names) - 1 <= 2 * (5.5 if dropout_p else 4.5), names


def test_eval_costs_one_product():
    sites = preset()
    group = Group(sites, "triton")
    with torch.no_grad(), keeping([group]):
        first = group.linear(0, sites[0].x, sites[0].bias)
        with counted() as names:
            second = group.linear(0, sites[0].x, sites[0].bias, dropout_p=0.1, training=False)
    assert len(names) == 1, names
    assert torch.equal(first, second)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("backend", BUILT)
def test_built_once_until_a_factor_changes(backend, keep, launches):
    """Where values are kept; elsewhere at every use, with the same gradients."""
    sites = preset()
    group = Group(sites, backend)
    optimizer = torch.optim.SGD(parameters(sites).values(), lr=0.1)
    _, grads = expected(sites)
    with keeping([group] if keep else []):
        for _ in range(3):  # gradient accumulation: forward and backward three times, no step
            loss(group, sites).backward()
        for name, value in gradients(sites).items():
            assert_parity(name, value, 3 * grads[name], LINEAR_TOLERANCE)
        builds = launches.count("build_group_kernel")
        assert builds == ((1 if keep else 12) if backend == "triton" else 0)
        optimizer.step()
        clear(sites)
        loss(group, sites).backward()
        _, grads = expected(sites)
        for name, value in gradients(sites).items():
            assert_parity(name, value, grads[name], LINEAR_TOLERANCE)
        more = launches.count("build_group_kernel") - builds
        assert more == ((1 if keep else 4) if backend == "triton" else 0)
    assert launches.count("build_group_backward_kernel") == (4 if backend == "triton" else 0), "one for all, either way"


def optimizer_step(values, **flags):
    for value in values:
        value.grad = torch.ones_like(value)
    torch.optim.AdamW(values, lr=0.1, **flags).step()


def shrink(values, change):
    for value in values:
        change(value)


COUNTED = {
    "adamw": optimizer_step,
    "fused": lambda values: optimizer_step(values, fused=True),
    "foreach": lambda values: optimizer_step(values, foreach=True),
    "copy_": lambda values: shrink(values, lambda v: v.detach().copy_(0.5 * v.detach())),
    "set_": lambda values: shrink(values, lambda v: v.set_((0.5 * v.detach()).clone())),
    "storage": lambda values: shrink(values, lambda v: setattr(v, "data", 0.5 * v.data)),
}
UNCOUNTED = {
    "data": lambda values: shrink(values, lambda v: v.data.mul_(0.5)),
    "numpy": lambda values: shrink(values, lambda v: np.multiply(v.detach().numpy(), 0.5, out=v.detach().numpy())),
    "dlpack": lambda values: shrink(values, lambda v: torch.from_dlpack(v.detach()).data.mul_(0.5)),
    "bytes": lambda values: shrink(values, lambda v: v.untyped_storage().copy_((0.5 * v.detach()).untyped_storage())),
}


@pytest.mark.parametrize("what", ["factors", "weight"])
@pytest.mark.parametrize("kind", [*COUNTED, *UNCOUNTED])
@pytest.mark.parametrize("backend", BUILT)
def test_every_way_to_change_a_tensor_is_seen(backend, kind, what):
    """Nothing is kept unasked, so that nobody has to notice; what autograd counts is seen where values are kept too."""
    if kind in ("adamw", "fused", "foreach") and what == "weight":
        pytest.skip("frozen: no optimizer holds it")
    for keep in (False, True) if kind in COUNTED else (False,):
        sites = preset()
        group = Group(sites, backend)
        values = [*parameters(sites).values()] if what == "factors" else [site.weight for site in sites]
        with keeping([group] if keep else []), torch.no_grad():
            before = [group.linear(i, site.x).clone() for i, site in enumerate(sites)]
            {**COUNTED, **UNCOUNTED}[kind](values)
            after = [group.linear(i, site.x) for i, site in enumerate(sites)]
        for site, old, new in zip(sites, before, after, strict=True):
            want = mora_kernels.mora_linear(site.x, site.weight, None, *site.factors(), 0.02, backend="reference")
            assert not torch.equal(old, new)
            assert_parity("y", new, want, LINEAR_TOLERANCE)


def test_alpha_and_inference_tensors_are_seen_where_values_are_kept():
    sites = preset()
    group = Group(sites, "torch")
    with keeping([group]), torch.no_grad():
        before = group.linear(0, sites[0].x).clone()
        sites[0].alpha = 0.5
        after = group.linear(0, sites[0].x).clone()
        assert not torch.equal(before, after)
        with torch.inference_mode():
            sites[0].weight = sites[0].weight.clone()  # autograd counts nothing here
            group.linear(0, sites[0].x)
            sites[0].weight.mul_(0.5)
            halved = group.linear(0, sites[0].x)
        want = mora_kernels.mora_linear(sites[0].x, sites[0].weight, None, *sites[0].factors(), 0.5)
        assert_parity("y", halved, want, LINEAR_TOLERANCE)


def test_what_is_kept_ends_with_its_block_and_can_be_forgotten():
    sites = preset()
    group, x = Group(sites, "torch"), sites[0].x
    halve = UNCOUNTED["data"]

    def fresh():
        return mora_kernels.mora_linear(x, sites[0].weight, None, *sites[0].factors(), 0.02, backend="torch")

    with torch.no_grad():
        with keeping([group]):
            old = group.linear(0, x).clone()
            halve(parameters(sites).values())
            assert torch.equal(group.linear(0, x), old), "kept: the promise was that nothing changes unseen"
            group.invalidate()
            assert_parity("forgotten", group.linear(0, x), fresh(), LINEAR_TOLERANCE)
            halve(parameters(sites).values())
            with keeping([group]):
                assert_parity("a new block", group.linear(0, x), fresh(), LINEAR_TOLERANCE)
            assert_parity("the block around it", group.linear(0, x), fresh(), LINEAR_TOLERANCE)
        halve(parameters(sites).values())
        assert_parity("after the block", group.linear(0, x), fresh(), LINEAR_TOLERANCE)
    with keeping([group]) as scope:
        assert scope.keep("name", 1, lambda: "value") == scope.keep("name", 1, lambda: "another") == "value"
        forget([group])
        assert scope.keep("name", 1, lambda: "another") == "another"


def test_blocks_may_end_in_any_order_and_be_copied():
    """An ended block keeps nothing, wherever a context still knows it."""
    sites = preset()
    group, x = Group(sites, "torch"), sites[0].x

    def check():
        want = mora_kernels.mora_linear(x, sites[0].weight, None, *sites[0].factors(), 0.02, backend="torch")
        assert_parity("y", group.linear(0, x), want, LINEAR_TOLERANCE)

    with torch.no_grad():
        first, second = keeping([group]), keeping([group])
        first.__enter__(), second.__enter__()
        group.linear(0, x)
        copied = contextvars.copy_context()
        first.__exit__(None, None, None), second.__exit__(None, None, None)
        UNCOUNTED["data"](parameters(sites).values())
        check()
        copied.run(check)


def test_forgetting_one_leaves_the_other_right():
    sites = [preset(), preset()]
    groups = [Group(each, "torch") for each in sites]
    with torch.no_grad(), keeping(groups):
        before = [group.linear(0, each[0].x).clone() for group, each in zip(groups, sites, strict=True)]
        forget([groups[0]])
        for group, each, old in zip(groups, sites, before, strict=True):
            assert torch.equal(group.linear(0, each[0].x), old)


def test_memory_that_is_given_back_is_not_mistaken_for_what_lay_there():
    sites = preset()
    group, x = Group(sites, "torch"), sites[0].x
    factor = sites[0].own["specific_b"]
    with torch.no_grad(), keeping([group]):
        for step in range(20):
            factor.data = torch.full_like(factor, float(step))
            want = mora_kernels.mora_linear(x, sites[0].weight, None, *sites[0].factors(), 0.02, backend="torch")
            assert_parity("y", group.linear(0, x), want, LINEAR_TOLERANCE)


@pytest.mark.parametrize("backend", BUILT)
def test_averages_swapped_in_and_out_between_forward_and_backward(backend):
    """A teacher's pass in the middle of a step: the way back uses the weights that are there again."""
    sites = preset()
    group = Group(sites, backend)
    total = loss(group, sites)
    kept = [value.detach().clone() for value in parameters(sites).values()]
    UNCOUNTED["data"](parameters(sites).values())
    with torch.no_grad():
        loss(group, sites)
    for value, old in zip(parameters(sites).values(), kept, strict=True):
        value.data.copy_(old)
    total.backward()
    _, grads = expected(sites)
    for name, value in gradients(sites).items():
        assert_parity(name, value, grads[name], LINEAR_TOLERANCE)


def test_eight_threads_get_the_values_of_one():
    """On the torch path: Triton's interpreter is not made for threads."""
    sites = preset()
    group = Group(sites, "torch")
    with torch.no_grad():
        want = [group.linear(i, site.x).clone() for i, site in enumerate(sites)]
    wrong = []

    cores = torch.get_num_threads()

    def work(seed):
        torch.set_num_threads(cores)  # a thread's own: another number sums in another order
        for step in range(10):
            index = (seed + step) % len(sites)
            with torch.no_grad():
                got = group.linear(index, sites[index].x)
            wrong.extend([(seed, step)] * (not torch.equal(got, want[index])))

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_five_projections_of_one_input_and_double_factors():
    """One launch drops four copies; factors wider than the kernels' arithmetic are read as float32."""
    sites = preset(sizes={"image": 24, "text": 24}, targets=3)[:5]
    x = sites[0].x
    mask = torch.rand(5, *x.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    for backend in BUILT:
        results = Group(sites, backend).linears([*range(5)], x, [None] * 5, dropout_p=0.5, mask=mask)
        for site, kept, y in zip(sites, mask, results, strict=True):
            want = mora_kernels.mora_linear(x * kept * 2, site.weight, None, *site.factors(), 0.02, backend="reference")
            assert_parity("y", y, want, LINEAR_TOLERANCE)
    for site in sites:
        site.own = {name: value.detach().double().requires_grad_() for name, value in site.own.items()}
    y = Group(sites, "triton").linear(0, x)
    y.sum().backward()
    assert_parity(
        "y", y, mora_kernels.mora_linear(x, sites[0].weight, None, *sites[0].factors(), 0.02), LINEAR_TOLERANCE
    )
    assert sites[0].own["specific_a"].grad.dtype == torch.float64


@pytest.mark.parametrize("backend", BUILT)
def test_two_backwards_through_one_node(backend):
    """Image first, text later, each with its own backward: gradients add up to those of the sum."""
    sites = preset(layers=2)
    group = Group(sites, backend)
    image = loss(group, sites, {0, 1, 4, 5})
    text = loss(group, sites, {2, 3, 6, 7})
    image.backward()
    text.backward()
    _, grads = expected(sites)
    for name, value in gradients(sites).items():
        assert_parity(name, value, grads[name], LINEAR_TOLERANCE)


@pytest.mark.parametrize("backend", BUILT)
def test_only_what_was_reached_gets_a_gradient(backend):
    sites = preset()
    group = Group(sites, backend)
    loss(group, sites, {0}).backward()
    for name, value in gradients(sites).items():
        assert (value is not None) == name.startswith("0."), name
    assert torch.isfinite(sites[0].commons["text"].grad).all() and sites[0].commons["text"].grad.abs().sum() > 0


@pytest.mark.parametrize("backend", BUILT)
def test_retained_graph_and_repeated_use(backend):
    sites = preset()
    group = Group(sites, backend)
    total = loss(group, sites) + loss(group, sites)
    total.backward(retain_graph=True)
    total.backward()
    (loss(group, sites) + 0 * total.detach()).backward()
    _, grads = expected(sites)
    for name, value in gradients(sites).items():
        assert_parity(name, value, 5 * grads[name], LINEAR_TOLERANCE)


@pytest.mark.parametrize("backend", BUILT)
def test_partial_gradients_do_not_disturb_the_next_backward(backend):
    sites = preset()
    group = Group(sites, backend)
    sites[0].x.requires_grad_()
    total = loss(group, sites)
    (dx,) = torch.autograd.grad(total, sites[0].x, retain_graph=True)
    other = loss(group, sites)
    (total + other).backward()
    _, grads = expected([*sites])
    for name, value in gradients(sites).items():
        assert_parity(name, value, 2 * grads[name], LINEAR_TOLERANCE)
    assert_parity("x", sites[0].x.grad, 2 * dx, LINEAR_TOLERANCE)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("backend", BUILT)
def test_checkpointing(backend, reentrant):
    sites = preset()
    group = Group(sites, backend)
    torch.manual_seed(0)
    x = torch.randn(9, 24, requires_grad=True)

    def block(x):
        return sum(group.linears([0, 1], x, [None, None], dropout_p=0.3))

    def run(forward):
        clear(sites)
        x.grad = None
        torch.manual_seed(1)
        y = forward(x) + forward(x)
        y.square().sum().backward()
        return {"x": x.grad, **{n: g for n, g in gradients(sites).items() if g is not None}}

    plain = run(block)
    stored = run(lambda x: checkpoint(block, x, use_reentrant=reentrant))
    assert plain.keys() == stored.keys()
    for name in plain:
        assert_parity(name, stored[name], plain[name], LINEAR_TOLERANCE)


@pytest.mark.parametrize("backend", BUILT)
def test_a_step_between_forward_and_backward_is_an_error(backend):
    sites = preset()
    group = Group(sites, backend)
    total = loss(group, sites)
    with torch.no_grad():
        sites[1].own["specific_b"].mul_(2)
    with pytest.raises(RuntimeError, match=r"projection 1 was modified in place"):
        total.backward()
    total = loss(group, sites)
    with torch.no_grad():
        sites[1].own["specific_b"].mul_(2)
        loss(group, sites)
    with pytest.raises(RuntimeError, match="rebuilt"):
        total.backward()


@pytest.mark.parametrize("backend", BUILT)
def test_frozen_factors_and_frozen_inputs(backend):
    sites = preset()
    for site in sites:
        site.own["common_magnitude"].requires_grad_(False)
    sites[0].commons["image"].requires_grad_(False)
    group = Group(sites, backend)
    loss(group, sites).backward()
    _, grads = expected(sites)
    for name, tensor in parameters(sites).items():
        assert (tensor.grad is None) != tensor.requires_grad, name
        if tensor.requires_grad:
            assert_parity(name, tensor.grad, grads[name], LINEAR_TOLERANCE)


@pytest.mark.parametrize("backend", BUILT)
def test_no_gradient_needed_means_no_graph(backend):
    sites = preset()
    for tensor in parameters(sites).values():
        tensor.requires_grad_(False)
    group = Group(sites, backend)
    assert not group.linear(0, sites[0].x, sites[0].bias).requires_grad
    x = sites[0].x.clone().requires_grad_()
    group.linear(0, x, sites[0].bias).backward(sites[0].grad)
    assert_parity("x", x.grad, sites[0].grad @ group.built(0).effective, LINEAR_TOLERANCE)


@pytest.mark.parametrize("backend", BUILT)
def test_built_carries_gradients(backend):
    sites = preset()
    group = Group(sites, backend)
    total = 0
    for index, site in enumerate(sites):
        built = group.built(index)
        weight = site.weight * built.u + built.left @ built.right.T
        assert_parity("effective", built.effective, weight, {torch.float32: 1e-6})
        total = total + (torch.nn.functional.linear(site.x, weight, site.bias) * site.grad).sum()
    total.backward()
    _, grads = expected(sites)
    for name, value in gradients(sites).items():
        assert_parity(name, value, grads[name], LINEAR_TOLERANCE)


@pytest.mark.parametrize("backend", BUILT)
def test_packed_buffers_are_filled_in_place(backend):
    sites = preset()[:2]
    packed = torch.zeros(3 * 24, 24)
    for row, site in zip((0, 2), sites, strict=True):
        site.buffer = lambda dtype, device, row=row: packed[24 * row : 24 * row + 24]
    group = Group(sites, backend)
    with torch.no_grad():
        _, y = (group.linear(index, sites[1].x) for index in range(2))
    assert torch.equal(y, sites[1].x @ packed[48:].T)
    assert packed[:24].abs().sum() > 0 and packed[24:48].abs().sum() == 0


@pytest.mark.parametrize("backend", BUILT)
def test_copies_and_pickles_are_fresh(backend):
    sites = preset()
    group = Group(sites, backend)
    loss(group, sites).backward()
    twin = copy.deepcopy(group)
    assert not twin._states and group._states
    assert torch.equal(twin.linear(0, sites[0].x), group.linear(0, sites[0].x))
    assert not pickle.loads(pickle.dumps(group))._states


def test_autocast_reads_the_weights_once_in_half_precision():
    sites = preset()
    group = Group(sites, "triton")
    with torch.autocast("cpu", dtype=torch.float16):
        y = group.linear(0, sites[0].x, sites[0].bias)
    assert y.dtype == torch.float16
    y.backward(sites[0].grad.half())
    want = mora_kernels.mora_linear(sites[0].x, sites[0].weight, sites[0].bias, *sites[0].factors(), 0.02)
    assert_parity("y", y, want, LINEAR_TOLERANCE)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16), keeping([group]):
        half = sites[0].x.half()
        group.linear(0, half, sites[0].bias)
        with counted() as names:
            group.linear(0, half, sites[0].bias)
    assert len(names) == 1, names


@pytest.mark.parametrize("backend", BUILT)
def test_inference_mode_does_not_poison_training(backend):
    sites = preset()
    group = Group(sites, backend)
    with torch.inference_mode():
        group.linear(0, sites[0].x)
    loss(group, sites).backward()
    _, grads = expected(sites)
    for name, value in gradients(sites).items():
        assert_parity(name, value, grads[name], LINEAR_TOLERANCE)


def test_errors_name_what_is_wrong():
    sites = preset()
    group = Group(sites, "triton")
    with pytest.raises(ValueError, match="x: got shape"):
        group.linear(0, torch.zeros(3, 7))
    with pytest.raises(TypeError, match="x: got dtype"):
        group.linear(0, sites[0].x.half())
    with pytest.raises(RuntimeError, match="cannot run here: .*float64"):
        group.linear(0, sites[0].x.double())
    with pytest.raises(ValueError, match="reference"):
        Group(sites, "reference").built(0)
