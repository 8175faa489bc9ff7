"""The operators under torch.library and torch.compile: opcheck, no graph break, kernels kept, few recompilations."""

import subprocess
import sys

import pytest
import torch
import torch._dynamo
from torch._dynamo.testing import CompileCounterWithBackend

import mora_kernels
from mora_kernels.numerics import total_gram
from mora_kernels.testing import LINEAR_TOLERANCE, assert_parity
from tests.triton.cases import make

OPS = torch.ops.mora_kernels


def samples(case="food101", bare=False, dtype=torch.float32):
    """Return the arguments of every operator, by name, without gradients."""
    factors = make(case).to(dtype, factors=torch.float32)
    common, others, *rest = (
        part if part is None or isinstance(part, list) else part.detach() for part in factors.arguments()[1:-1]
    )
    rest = [None, None, rest[2], None] if bare else rest
    rest.append(None if factors.common_out is None else factors.common_out.detach())
    gram = total_gram(common, others).detach()
    weight, alpha = factors.weight, factors.alpha
    thin, saved, effective = OPS.build(weight, common, gram, *rest, alpha, dtype)
    x, seed = factors.x.detach(), torch.tensor([5])
    ys = OPS.dropout(x, seed, 0.25, 3, dtype, None)
    mask = torch.rand(3, *x.shape) > 0.5
    return {
        "build": (weight, common, gram, *rest, alpha, dtype),
        "build_backward": (torch.randn_like(thin), thin, saved, weight, common, *rest, alpha),
        "thin_gradient": (torch.randn_like(effective), weight, thin),
        "dropout": (x, seed, 0.25, 3, dtype, None),
        "dropout_backward": (ys, seed, 0.25, torch.float32, mask),
    }


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("name", ["build", "build_backward", "thin_gradient", "dropout", "dropout_backward"])
def test_opcheck(name, bare):
    torch.library.opcheck(getattr(OPS, name).default, samples(bare=bare)[name])


def test_an_operator_never_drops_a_gradient_silently():
    arguments = list(samples()["build"])
    arguments[1].requires_grad_()
    with pytest.raises(RuntimeError, match="no gradient of its own"):
        OPS.build(*arguments)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_without_a_graph_break(backend, launches):
    expected = make("food101").to(torch.float32)
    options = {"dropout_p": 0.0, "backend": "triton"}
    y = mora_kernels.mora_linear(expected.x, expected.weight, expected.bias, *expected.arguments()[1:], **options)
    y.backward(expected.grad)
    launches.clear()
    torch._dynamo.reset()
    factors = make("food101").to(torch.float32)
    compiled = torch.compile(mora_kernels.mora_linear, fullgraph=True, backend=backend)
    got = compiled(factors.x, factors.weight, factors.bias, *factors.arguments()[1:], **options)
    got.backward(factors.grad)
    assert launches == ["build_one_kernel", "gradient_kernel", "build_one_backward_kernel"]
    assert_parity("y", got, y, LINEAR_TOLERANCE)
    for name, leaf in factors.leaves().items():
        assert_parity(name, leaf.grad, expected.leaves()[name].grad, LINEAR_TOLERANCE)


def test_two_batch_sizes_compile_one_dynamic_graph():
    torch._dynamo.reset()
    factors = make("food101").to(torch.float32)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(mora_kernels.mora_linear, fullgraph=True, backend=counter)
    for rows in (5, 9, 13, 21, 34):
        x = torch.randn(rows, 64, requires_grad=True)
        y = compiled(x, factors.weight, factors.bias, *factors.arguments()[1:], dropout_p=0.1, backend="triton")
        y.sum().backward()
    assert counter.frame_count <= 2, "one static graph, then one for every size"


def test_a_group_compiles_by_its_functional_path(launches):
    from tests.kernels.test_group import preset

    torch._dynamo.reset()
    sites = preset()
    group = mora_kernels.Group(sites, "triton")
    wanted = group.linear(0, sites[0].x, sites[0].bias)
    compiled = torch.compile(lambda x, bias: group.linear(0, x, bias), fullgraph=True, backend="aot_eager")
    got = compiled(sites[0].x, sites[0].bias)
    assert_parity("y", got, wanted, LINEAR_TOLERANCE)
    assert launches.count("build_one_kernel") == 1


def test_importing_the_package_imports_no_triton():
    code = (
        "import sys, torch, mora_kernels; from mora_kernels import backend\n"
        "assert 'triton' not in sys.modules, 'triton'\n"
        "print(backend.explain('auto', torch.device('cpu')))\n"
        "assert 'triton' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("environment", "dtype", "reason"),
    [("0", torch.float32, "no CPU compiler"), ("1", torch.float64, "float64"), ("1", torch.bfloat16, "bfloat16")],
    ids=str,
)
def test_asked_for_by_name_where_it_cannot_run(monkeypatch, environment, dtype, reason):
    monkeypatch.setenv("TRITON_INTERPRET", environment)
    factors = make("food101").to(dtype)
    with pytest.raises(RuntimeError, match=f"backend: got 'triton', which cannot run here: .*{reason}"):
        mora_kernels.effective_weight(*factors.arguments(), backend="triton")


def test_without_triton_installed(monkeypatch):
    monkeypatch.setattr("mora_kernels.backend.installed", lambda: False)
    with pytest.raises(RuntimeError, match="Triton is not installed"):
        mora_kernels.backend.explain("triton", torch.device("cuda", 0))
    assert mora_kernels.backend.explain("auto", torch.device("cuda", 0)) == (
        "torch",
        "the fused kernels cannot run: Triton is not installed",
    )
