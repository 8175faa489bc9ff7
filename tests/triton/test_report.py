"""Machine code of every kernel in every shipped setting: no spills, shared memory that fits, matrix units where due."""

import json
import os
import subprocess
import sys

import pytest

import mora_kernels.triton.configs as configs

# MORA_TARGETS=sm_80,sm_90,sm_100,gfx942 compiles for all; the default is what a build can afford.
TARGETS = tuple(os.environ.get("MORA_TARGETS", "sm_90").split(","))


ADDRESSES = """
import re, sys
from mora_kernels.triton import machine_code, report
from mora_kernels.triton.configs import choose
report.main(["--json", "--targets", sys.argv[1]])
for op, label, kernel, types, constants, rank in report.variants():
    if op != "dropout":
        continue
    options = choose(op, "sm_90", rank)
    launch = {name: options.pop(name) for name in ("num_warps", "num_stages")}
    code = machine_code.compile_kernel(kernel, types, {**constants, **options}, "sm_90", **launch).asm["ttir"]
    for offsets in re.findall(r"tt.addptr .*, tensor<\\d+x\\d+x(i\\d+)>", code):
        print(label, offsets)
"""


@pytest.fixture(scope="module")
def reports():
    """Target -> rows, and the lines of `ADDRESSES`; compiled in a process where Triton is not interpreted.

    Triton caches the code.
    """
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", ADDRESSES, ",".join(TARGETS)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    found = {target: [row for row in rows if row["target"] == target] for target in TARGETS}
    return {**found, "addresses": [line for line in lines if not line.startswith("{")]}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles_without_spills(reports, target):
    rows = reports[target]
    kernels = {row["kernel"] for row in rows}
    assert kernels == {
        "build_group_kernel",
        "build_group_backward_kernel",
        "build_one_kernel",
        "build_one_backward_kernel",
        "gradient_kernel",
        "dropout_kernel",
    }
    for row in rows:
        assert row["spills"] == 0, row
        assert row["shared"] <= row["limit"], row


@pytest.mark.timeout(600)
@pytest.mark.parametrize("target", TARGETS)
def test_matrix_units_where_the_precision_allows_them(reports, target):
    """Exact float32 products have no matrix instruction on NVIDIA; tf32x3 and everything on CDNA have."""
    for row in reports[target]:
        due = row["precision"] != "-" and (target == "gfx942" or row["precision"] == "tf32x3")
        assert bool(row["matrix"]) == due, row


@pytest.mark.timeout(600)
def test_dropout_addresses_elements_in_64_bits(reports):
    """[M, N] of x may have more than 2^31 elements; M and N are 32-bit numbers, their product is not."""
    lines = reports["addresses"]
    assert len(lines) >= 16 and all(line.endswith(" i64") for line in lines), lines


def test_an_unknown_gpu_gets_the_default():
    for op, ranks in configs.DEFAULT.items():
        for rank, options in ranks.items():
            assert configs.choose(op, "sm_120", rank) == options
            assert configs.choose(op, "sm_100", rank - 1) == options
        assert configs.choose(op, "gfx1100", 10_000) == ranks[max(ranks)], "wider than the table: its widest row"
