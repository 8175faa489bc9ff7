"""Machine code of every kernel in every shipped setting: no spills, shared memory that fits, matrix units where due."""

import json
import os
import subprocess
import sys

import pytest

import mora_kernels.triton.configs as configs

# MORA_TARGETS=sm_80,sm_90,sm_100,gfx942 compiles for all; the default is what a build can afford.
TARGETS = tuple(os.environ.get("MORA_TARGETS", "sm_90,gfx942").split(","))


@pytest.fixture(scope="module")
def reports():
    """Target -> rows; compiled in processes of their own, where Triton is not interpreted. Triton caches the code."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "mora_kernels.triton.report", "--json", "--targets"]
    runs = {
        pair: subprocess.Popen([*command, pair], env=environment, stdout=subprocess.PIPE, text=True)
        for pair in (",".join(TARGETS[::2]), ",".join(TARGETS[1::2]))
        if pair
    }
    lines = [json.loads(line) for run in runs.values() for line in run.communicate()[0].splitlines()]
    assert not any(run.returncode for run in runs.values())
    return {target: [row for row in lines if row["target"] == target] for target in TARGETS}


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


def test_an_unknown_gpu_gets_the_default():
    for op, ranks in configs.DEFAULT.items():
        for rank, options in ranks.items():
            assert configs.choose(op, "sm_120", rank) == options
            assert configs.choose(op, "sm_90", rank - 1) == options
        assert configs.choose(op, "gfx1100", 10_000) == ranks[max(ranks)], "wider than the table: its widest row"
