"""What `benchmarks/gpu.sh` checks before it times anything, on one group in the interpreter."""

import torch

from benchmarks.gpu_parity import groups


def test_a_group_of_eight_is_built_by_one_launch_each_way():
    assert [*groups("cpu", [torch.float32], (24, 16))] == ["group of eight float32"]
