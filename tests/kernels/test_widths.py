"""Weights that are not square: S_out G S^T against loops in float64, every gradient by name, the square case in it."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import mora_kernels
from mora_kernels import Group
from mora_kernels.testing import LINEAR_TOLERANCE, WEIGHT_TOLERANCE, assert_parity, make_factors

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SIZES = [(5, 48), (48, 5), (48, 130), (130, 96), (96, 5), (5, 130), (48, 48)]  # out, in
CASES = {
    "published": dict(rank=4),
    "ranks": dict(rank=3, common_rank=5, other_sizes=(31, 17)),
    "no-gram": dict(rank=17, other_sizes=()),
    "zero-columns": dict(rank=2, zero_columns=2),
    "start": dict(rank=4, trained=False),
}
SPECIFIC = ("specific_a", "specific_b", "specific_magnitude")


def make(case, out, columns, dtype=torch.float64, bare=False, **options):
    made = make_factors(columns, **{"alpha": 0.02, "rows": 7, **CASES[case], **options, "out": out})
    if bare:
        made = type(made)(**{**vars(made), **dict.fromkeys(SPECIFIC)})
    return made.to(dtype, factors=torch.float64 if dtype == torch.float64 else torch.float32)


def linear(one, backend, **options):
    """y by the public operation."""
    factors = one.arguments()[1:]
    return mora_kernels.mora_linear(
        one.x, one.weight, one.bias, *factors, backend=backend, common_out=one.common_out, **options
    )


def weigh(one, backend):
    return mora_kernels.effective_weight(*one.arguments(), backend=backend, common_out=one.common_out)


def results(one, value, grad):
    """A value and the gradient of every leaf that got one, by name."""
    value.backward(grad.to(value.dtype))
    return {"value": value, **{name: leaf.grad for name, leaf in one.leaves().items() if leaf.grad is not None}}


class Site:
    """What `Group` needs of a module."""

    def __init__(self, one):
        self.one, self.weight, self.alpha, self.common_out = one, one.weight, one.alpha, one.common_out

    def factors(self):
        return self.one.arguments()[1:7]


@pytest.mark.parametrize("bare", [False, True], ids=["both", "no-specific"])
@pytest.mark.parametrize("case", CASES)
def test_the_specification_element_by_element(case, bare):
    one = make(case, 5, 7, bare=bare)
    rank, out, columns = one.common.shape[1], 5, 7
    gram = sum((other.T @ other for other in one.other_common or ()), torch.zeros(rank, rank, dtype=torch.float64))
    gram = gram if one.other_common else torch.eye(rank, dtype=torch.float64)
    want = torch.zeros(out, columns, dtype=torch.float64)
    terms = [(lambda i, j: one.common_out[i] @ gram @ one.common[j], one.common_magnitude)]
    if not bare:
        terms.append((lambda i, j: one.specific_a[j] @ one.specific_b[:, i], one.specific_magnitude))
    for update, magnitude in terms:
        for j in range(columns):
            column = torch.stack([one.weight[i, j] + one.alpha * update(i, j) for i in range(out)])
            want[:, j] += magnitude[j] * column / max(float(column.detach().norm()), 1e-5)
    assert_parity("weight", weigh(one, "reference"), want, WEIGHT_TOLERANCE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("out", "columns"), SIZES)
def test_torch_backend_and_every_gradient(case, out, columns, dtype):
    one = make(case, out, columns, dtype)
    oracle = one.to(torch.float64)
    want = results(oracle, linear(oracle, "reference"), oracle.grad)
    for actual in (linear(one, "torch"), Group([Site(one)], "torch").linear(0, one.x, one.bias)):
        for leaf in one.leaves().values():
            leaf.grad = None
        got = results(one, actual, one.grad)
        assert got.keys() == want.keys()
        for name in got:
            assert_parity(name, got[name], want[name], {got[name].dtype: LINEAR_TOLERANCE[dtype]})


@pytest.mark.parametrize("bare", [False, True], ids=["both", "no-specific"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("out", "columns"), [(5, 48), (130, 96)])
def test_effective_weight_and_every_gradient(case, out, columns, bare):
    one = make(case, out, columns, torch.float32, bare)
    oracle = one.to(torch.float64)
    grad = torch.randn(out, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    got = results(one, weigh(one, "torch"), grad)
    for name, want in results(oracle, weigh(oracle, "reference"), grad).items():
        assert_parity(name, got[name], want, LINEAR_TOLERANCE)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("out", "columns"), [(5, 8), (8, 5), (6, 6)])
def test_gradcheck(case, out, columns, backend):
    one = make(case, out, columns, rank=2, common_rank=3, rows=3)
    names = list(one.leaves())

    def function(*leaves):
        named = dict(zip(names, leaves, strict=True))
        others = [named.pop(name) for name in names if name.startswith("other")] or None
        return mora_kernels.mora_linear(
            weight=one.weight, other_common=others, alpha=one.alpha, backend=backend, **named
        )

    assert torch.autograd.gradcheck(function, tuple(one.leaves().values()))


@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
def test_the_square_case_is_equation_1_with_the_same_parameters(backend):
    """Where out = in, S on both sides is what no `common_out` means: same W_eff, and the sum of both gradients."""
    one = make("ranks", 48, 48, torch.float32)
    twice = one.to(torch.float32)
    both = twice.common.detach().clone().requires_grad_()
    square = mora_kernels.effective_weight(*one.arguments(), backend=backend)
    general = mora_kernels.effective_weight(*twice.arguments(), backend=backend, common_out=both)
    square.square().sum().backward(), general.square().sum().backward()
    with torch.no_grad():
        twice.common.copy_(one.common), both.copy_(one.common)
    assert_parity("weight", general, mora_kernels.effective_weight(*twice.arguments(), common_out=both), {
        torch.float32: 2e-6})  # fmt: skip
    assert_parity("weight", general, square, {torch.float32: 2e-6})
    assert_parity("common", twice.common.grad + both.grad, one.common.grad, {torch.float32: 1e-5})


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_a_group_of_square_and_other_projections(backend, p):
    """An MLP beside an attention in three towers: a factor a width, shared by all that begin or end there."""
    generator = torch.Generator().manual_seed(3)
    widths = {"image": (32, 48), "text": (17, 20), "audio": (33, 33)}

    def factor(width):
        return (torch.randn(width, 3, generator=generator) / 2).requires_grad_()

    commons = {name: {size: factor(size) for size in {*both}} for name, both in widths.items()}

    def sites(kind):
        owned, made = {}, []
        for tower, factors in commons.items():
            owned[tower] = {size: f.detach().to(kind).requires_grad_() for size, f in factors.items()}
        for seed, (tower, (main, hidden)) in enumerate(widths.items()):
            others = [owned[name][widths[name][0]] for name in widths if name != tower]
            for columns, out in ((main, main), (main, hidden), (hidden, main)):
                if out == columns == hidden and made and made[-1].tower == tower:
                    continue
                one = make_factors(columns, (5,), rank=3, rows=6, seed=seed, out=out if out != columns else None)
                one = one.to(kind)
                one = type(one)(**{**vars(one), "common": owned[tower][columns], "other_common": others})
                if out != columns:
                    one = type(one)(**{**vars(one), "common_out": owned[tower][out]})
                made.append(Site(one))
                made[-1].tower = tower
        return owned, made

    def run(owned, made, name):
        group, total = Group(made, name), 0
        for index, site in enumerate(made):
            x, mask = site.one.x.detach(), None
            if p:
                mask = torch.rand(1, *x.shape, generator=torch.Generator().manual_seed(index)) >= p
            if name == "reference":
                x = x if mask is None else x * mask[0] / (1 - p)
                y = group.linear(index, x, site.one.bias)
            else:
                y = group.linear(index, x, site.one.bias, p, mask=mask)
            total = total + (y * site.one.grad).sum()
        total.backward()
        found = {f"{tower}.{size}": f.grad for tower, both in owned.items() for size, f in both.items()}
        for index, site in enumerate(made):
            found |= {f"{index}.{n}": leaf.grad for n, leaf in site.one.leaves().items() if "common" not in n[:12]}
        return {name: grad for name, grad in found.items() if grad is not None}

    got, want = run(*sites(torch.float32), backend), run(*sites(torch.float64), "reference")
    assert got.keys() == want.keys()
    for name in want:
        assert_parity(name, got[name], want[name], LINEAR_TOLERANCE)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_dropout_inputs_without_gradient_and_shapes(backend):
    one = make("published", 130, 48, torch.float32)
    torch.manual_seed(7)
    y = linear(one, backend, dropout_p=0.3)
    torch.manual_seed(7)
    assert_parity("y", y, F.linear(F.dropout(one.x, 0.3), weigh(one, "reference"), one.bias), LINEAR_TOLERANCE)
    for shape in ((48,), (0, 48), (2, 3, 48)):
        x = torch.randn(shape)
        y = mora_kernels.mora_linear(
            x, one.weight, None, *one.arguments()[1:], backend=backend, common_out=one.common_out
        )
        assert y.shape == (*shape[:-1], 130)
        y.sum().backward()
    assert one.common_out.grad.shape == (130, 4) and one.x.grad is None


def test_only_what_needs_a_gradient_gets_one():
    for frozen in itertools.chain(("common", "common_out"), SPECIFIC):
        one = make("published", 5, 48, torch.float32)
        getattr(one, frozen).requires_grad_(False)
        linear(one, "torch").backward(one.grad)
        for name, leaf in one.leaves().items():
            assert (leaf.grad is None) == (name == frozen), name


def test_compiles_without_a_graph_break():
    one, other = (make("published", 130, 48, torch.float32) for _ in range(2))
    want = results(one, linear(one, "torch"), one.grad)
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    for name, value in results(other, compiled(other, "torch"), other.grad).items():
        assert_parity(name, value, want[name], LINEAR_TOLERANCE)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("common_out", torch.zeros(7, 4)),
        ("common_out", torch.zeros(6, 3)),
        ("common_out", torch.zeros(6, 4, dtype=torch.int64)),
        ("common_out", "image"),
        ("weight", torch.zeros(7, 8)),
        ("common", torch.zeros(6, 4)),
        ("specific_a", torch.zeros(6, 4)),
        ("specific_b", torch.zeros(4, 8)),
        ("common_magnitude", torch.zeros(6)),
        ("bias", torch.zeros(8)),
        ("x", torch.zeros(3, 6)),
    ],
)
def test_errors_name_the_argument(name, value):
    one = make("published", 6, 8, torch.float32)
    named = {name: leaf for name, leaf in one.leaves().items() if "other" not in name}
    named |= {"weight": one.weight, "other_common": one.other_common, "alpha": 0.1, name: value}
    wrong = "common_out" if name == "weight" else name
    with pytest.raises((ValueError, TypeError), match=rf"^{wrong}: got .*expected"):
        mora_kernels.mora_linear(**named)


def test_a_square_factor_does_not_reach_another_width():
    one = make("published", 6, 8, torch.float32)
    with pytest.raises(ValueError, match=r"^weight: got shape \(6, 8\) and no common_out, .*common_out \(6, r_c\)"):
        mora_kernels.effective_weight(*one.arguments())
