"""One adapted projection, forward and backward, float32, against the official sequence of operations.

    pytest benchmarks/ --benchmark -s

Image width 768, a batch of 8 images of 197 tokens, rank 4 + 4, text width 512. Parity of output and of every gradient
comes first; nothing is timed when it fails.
"""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import mora_kernels
from benchmarks.official import official_linear
from benchmarks.timing import environment, interleave, saved_square_bytes
from mora_kernels.testing import LINEAR_TOLERANCE, assert_parity, make_factors

RESULTS = Path(__file__).parent / "results" / "projection.jsonl"
PROVIDERS = {
    "official": official_linear,
    "reference": partial(mora_kernels.mora_linear, backend="reference"),
    "torch": partial(mora_kernels.mora_linear, backend="torch"),
}


def step(function, factors, dropout=0.0):
    """One forward and backward pass; the gradients of every leaf, by name."""
    leaves = factors.leaves()
    y = function(factors.x, factors.weight, factors.bias, *factors.arguments()[1:], dropout_p=dropout)
    gradients = torch.autograd.grad(y, list(leaves.values()), factors.grad)
    return {"y": y.detach(), **dict(zip(leaves, gradients, strict=True))}


def check_parity(factors):
    """Every provider's output and gradients against the reference in float64."""
    oracle = step(PROVIDERS["reference"], factors.to(torch.float64))
    for provider, function in PROVIDERS.items():
        for name, tensor in step(function, factors).items():
            assert_parity(f"{provider} {name}", tensor, oracle[name], LINEAR_TOLERANCE)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_projection(full, dropout, capsys):
    width, other, rows, rounds = (768, 512, 8 * 197, 60) if full else (96, 64, 32, 2)
    factors = make_factors(width, (other,), rank=4, alpha=0.01, rows=rows).to(torch.float32)
    check_parity(factors)
    frozen = torch.nn.Linear(width, width).requires_grad_(False)
    runs = {name: partial(step, function, factors, dropout) for name, function in PROVIDERS.items()}
    runs["frozen nn.Linear"] = lambda: torch.autograd.grad(
        frozen(F.dropout(factors.x, dropout)), factors.x, factors.grad
    )
    forward = {
        name: partial(function, factors.x, factors.weight, factors.bias, *factors.arguments()[1:])
        for name, function in PROVIDERS.items()
    }
    timings = interleave(runs, rounds)
    saved = {name: saved_square_bytes(run, width) for name, run in forward.items()}
    rows_out = [
        {
            **environment(),
            "op": "projection forward and backward",
            "shape": {"width": width, "other_width": other, "tokens": rows, "rank": 4, "dropout": dropout},
            "dtype": "float32",
            "provider": name,
            "median_ms": round(1e3 * timing.median, 3),
            "p20_ms": round(1e3 * timing.p20, 3),
            "p80_ms": round(1e3 * timing.p80, 3),
            "rounds": timing.rounds,
            "times_faster_than_official": round(timings["official"].median / timing.median, 2),
            "saved_square_bytes": saved.get(name),
        }
        for name, timing in timings.items()
    ]
    assert saved["official"] >= 5 * saved["torch"]
    if full:
        with RESULTS.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows_out)
        with capsys.disabled():
            print(f"\n{rows_out[0]['op']}, {rows_out[0]['shape']}")
            for row in rows_out:
                kept = "" if row["saved_square_bytes"] is None else f"{row['saved_square_bytes'] / 2**20:6.1f} MiB kept"
                print(
                    f"  {row['provider']:18} {row['median_ms']:8.2f} ms [{row['p20_ms']:.2f}, {row['p80_ms']:.2f}]"
                    f"  {row['times_faster_than_official']:5.2f} x official {kept}"
                )
