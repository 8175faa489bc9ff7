"""The fused kernels on weights that are not square: every gradient by name, with poisoned memory, and opcheck."""

import pytest
import torch

import mora_kernels
from mora_kernels import Group
from mora_kernels.testing import LINEAR_TOLERANCE, assert_parity
from tests.kernels.test_widths import CASES, Site, linear, make, results, weigh

OPS = torch.ops.mora_kernels
SIZES = [(5, 40), (66, 5), (70, 40), (40, 70)]  # out, in: one tile or part of it, and several with a tail
EVERY = [(*size, case, torch.float32) for size in SIZES for case in CASES]
EVERY += [(*size, case, torch.float16) for size, case in zip([*SIZES, SIZES[2]], CASES, strict=True)]


@pytest.mark.parametrize(("out", "columns", "case", "dtype"), EVERY, ids=str)
def test_every_gradient(case, out, columns, dtype, launches):
    one = make(case, out, columns, dtype)
    oracle = one.to(torch.float64)
    want = results(oracle, linear(oracle, "reference"), oracle.grad)
    got = results(one, linear(one, "triton"), one.grad)
    assert launches == ["build_one_kernel", "gradient_kernel", "build_one_backward_kernel"]
    grouped = one.to(dtype, factors=torch.float32)
    group = Group([Site(grouped)], "triton")
    again = results(grouped, group.linear(0, grouped.x, grouped.bias), grouped.grad)
    assert launches[3:] == ["build_group_kernel", "gradient_kernel", "build_group_backward_kernel"]
    for name in want:
        for found in (got, again):
            assert_parity(name, found[name], want[name], {found[name].dtype: LINEAR_TOLERANCE[dtype]})


@pytest.mark.parametrize("bare", [False, True], ids=["both", "no-specific"])
@pytest.mark.parametrize("rank", [1, 33, 64])
def test_ranks_and_the_weight_itself(rank, bare):
    one = make("published", 30, 72, torch.float32, bare, rank=rank)
    oracle = one.to(torch.float64)
    grad = torch.randn(30, 72, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    got = results(one, weigh(one, "triton"), grad)
    for name, want in results(oracle, weigh(oracle, "reference"), grad).items():
        assert_parity(name, got[name], want, LINEAR_TOLERANCE)


def test_dropout_and_inputs_without_gradient():
    one = make("published", 130, 48, torch.float32)
    one.x.requires_grad_(False)
    mask = torch.rand(1, *one.x.shape, generator=torch.Generator().manual_seed(0)) >= 0.25
    y = mora_kernels.triton.mora_linear(one.x, one.bias, one.factors(), 0.25, mask=mask)
    oracle = one.to(torch.float64)
    factors = oracle.arguments()[1:]
    wanted = mora_kernels.mora_linear(
        oracle.x.detach() * mask[0] / 0.75, oracle.weight, oracle.bias, *factors, common_out=oracle.common_out,
        backend="reference",
    )  # fmt: skip
    want = results(oracle, wanted, oracle.grad)
    got = results(one, y, one.grad)
    assert got.keys() == want.keys() and "x" not in got
    for name in got:
        assert_parity(name, got[name], want[name], LINEAR_TOLERANCE)


@pytest.mark.parametrize("bare", [False, True], ids=["both", "no-specific"])
def test_opcheck(bare):
    one = make("ranks", 20, 36, torch.float32, bare)
    common, *rest = (part if part is None else part.detach() for part in one.factors().own)
    gram, weight, alpha = torch.eye(5), one.weight, one.alpha
    arguments = (weight, common, gram, *rest, alpha, torch.float32)
    thin, saved, effective = OPS.build(*arguments)
    torch.library.opcheck(OPS.build.default, arguments)
    torch.library.opcheck(
        OPS.build_backward.default, (torch.randn_like(thin), thin, saved, weight, common, *rest, alpha)
    )
    torch.library.opcheck(OPS.thin_gradient.default, (torch.randn_like(effective), weight, thin))
