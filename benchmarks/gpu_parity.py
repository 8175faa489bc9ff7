"""Parity of everything that runs on the GPU with the specification in float64; the first failure ends the script."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import mora_kernels
from benchmarks.sites import Site, doubled, preset
from mora_kernels.kept import keeping
from mora_kernels.launches import counted
from mora_kernels.testing import LINEAR_TOLERANCE, WEIGHT_TOLERANCE, ProjectionInputs, assert_parity, make_factors

CASES = {
    "food101": {"size": 256, "other_sizes": (192,), "rank": 4, "alpha": 0.01},
    "hateful_memes": {"size": 192, "other_sizes": (256,), "rank": 8, "alpha": 0.1},
    "three-modalities": {"size": 128, "other_sizes": (96, 33), "rank": 4, "alpha": 0.05},
    "mean-of-two": {"size": 128, "other_sizes": (96, 33), "rank": 4, "alpha": 0.05, "gram_scale": 0.5},
    "no-gram": {"size": 128, "other_sizes": (), "rank": 4, "alpha": 0.05},
    "zero-columns": {"size": 64, "other_sizes": (48,), "rank": 4, "alpha": 0.01, "zero_columns": 3},
    "odd": {"size": 97, "other_sizes": (31,), "rank": 3, "common_rank": 5, "alpha": 0.02, "rows": 3},
    "rank-17": {"size": 130, "other_sizes": (40,), "rank": 17, "alpha": 0.02},
    "rank-64": {"size": 130, "other_sizes": (66,), "rank": 64, "alpha": 0.01, "rows": 9},
}


def linear(factors: ProjectionInputs, backend: str) -> dict[str, Tensor]:
    """Return y and every gradient, by name."""
    arguments, scale = factors.arguments()[1:], factors.gram_scale
    y = mora_kernels.mora_linear(factors.x, factors.weight, factors.bias, *arguments, backend=backend, gram_scale=scale)
    y.backward(factors.grad.to(y.dtype))
    return {"y": y.detach(), **{name: leaf.grad for name, leaf in factors.leaves().items()}}


def projections(device: str, dtypes: list[torch.dtype], cases: list[str]) -> Iterator[str]:
    """Every case in every dtype: W_eff, y and every gradient."""
    for case in cases:
        for dtype in dtypes:
            factors = make_factors(**CASES[case]).to(dtype, factors=torch.float32, device=device)
            oracle = factors.to(torch.float64, device=device)
            scale = factors.gram_scale
            weight = mora_kernels.effective_weight(*factors.arguments(), backend="triton", gram_scale=scale)
            want = mora_kernels.effective_weight(*oracle.arguments(), backend="reference", gram_scale=scale)
            assert_parity(f"{case} weight", weight, want, WEIGHT_TOLERANCE)
            with counted(library=False) as names:
                actual = linear(factors, "triton")
            assert names == ["build_one_kernel", "gradient_kernel", "build_one_backward_kernel"], names
            for name, value in linear(oracle, "reference").items():
                assert_parity(f"{case} {name}", actual[name], value, {actual[name].dtype: LINEAR_TOLERANCE[dtype]})
            yield f"{case} {str(dtype).removeprefix('torch.')}"


def step(group: mora_kernels.Group, sites: list[Site], mask: Tensor | None, p: float) -> None:
    """One forward and backward of every projection of a group."""
    total = sum((group.linear(i, s.x, s.bias, p, mask=mask).float() * s.grad).sum() for i, s in enumerate(sites))
    total.backward()


def groups(
    device: str,
    dtypes: list[torch.dtype],
    widths: tuple[int, int],
    rank: int = 4,
    alpha: float = 0.01,
    layers: int = 2,
) -> Iterator[str]:
    """The projections of `layers` blocks, eight of two, under autocast: one launch each way, every gradient."""
    for dtype in dtypes:
        sites = preset(*widths, rows=33, device=device, rank=rank, alpha=alpha, layers=layers)
        group = mora_kernels.Group(sites, "triton")
        cast = torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32)
        with cast, keeping([group]), counted(library=False) as names:
            step(group, sites, None, 0.0)
        assert names.count("build_group_kernel") == names.count("build_group_backward_kernel") == 1, names
        wide = doubled(sites)
        step(mora_kernels.Group(wide, "reference"), wide, None, 0.0)
        for index, (site, want) in enumerate(zip(sites, wide, strict=True)):
            for name, tensor in site.leaves().items():
                table = {torch.float32: LINEAR_TOLERANCE[dtype]}
                assert_parity(f"group {index} {name}", tensor.grad, want.leaves()[name].grad, table)
        yield f"group of {'eight' if layers == 2 else len(sites)} {str(dtype).removeprefix('torch.')}"


def masks(device: str) -> Iterator[str]:
    """Dropout: an explicit mask gives the masked product; the drawn one repeats with the seed and in backward."""
    site = preset(64, 48, rows=65, device=device)[0]
    group = mora_kernels.Group([site], "triton")
    mask = torch.rand(1, *site.x.shape, device=device) > 0.25
    y = group.linear(0, site.x, site.bias, 0.25, mask=mask)
    want = group.linear(0, site.x * mask[0] / 0.75, site.bias)
    assert_parity("masked y", y, want, LINEAR_TOLERANCE)
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(group.linear(0, site.x, site.bias, 0.25))
    assert torch.equal(*drawn), "dropout does not repeat under torch.manual_seed"
    yield "dropout"


def graphs(device: str) -> Iterator[str]:
    """A captured step, replayed after the factors changed, gives what an eager step gives; masks differ per replay."""
    sites = preset(256, 192, rows=64, device=device)
    group = mora_kernels.Group(sites, "triton")
    leaves = [tensor for site in sites for tensor in site.leaves().values()]
    for leaf in leaves:
        leaf.grad = torch.zeros_like(leaf)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(group, sites, None, 0.0)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for leaf in leaves:
            leaf.grad.zero_()
        step(group, sites, None, 0.0)
    with torch.no_grad():
        for leaf in leaves:
            leaf.mul_(1.25)
    graph.replay()
    got = [leaf.grad.clone() for leaf in leaves]
    for leaf in leaves:
        leaf.grad.zero_()
    group.invalidate()
    step(group, sites, None, 0.0)
    for index, (leaf, value) in enumerate(zip(leaves, got, strict=True)):
        assert_parity(f"captured gradient {index}", value, leaf.grad, LINEAR_TOLERANCE)
    yield "CUDA graph"


def offsets(device: str) -> Iterator[str]:
    """More than 2^31 elements: the last rows are right."""
    from mora_kernels.triton.dropout import draw_seed, dropout, dropout_backward

    rows = 2**31 // 768 + 1000
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        yield "offsets beyond 2^31 (skipped: less than 20 GiB free)"
        return
    x = torch.ones(rows, 768, dtype=torch.float16, device=device)
    seed = draw_seed(x.device)
    (y,) = dropout(x, seed, 0.5, 1, torch.float16)
    grad = dropout_backward([x], seed, 0.5, torch.float16)
    assert torch.equal(y[-5000:], grad[-5000:]), "another mask in backward"
    kept = y[-5000:].float()
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert abs(float(kept.mean()) - 1) < 0.01
    yield "offsets beyond 2^31"
