"""What only a GPU can show, as `TRITON_INTERPRET=0 pytest -m gpu`: bfloat16, CUDA graphs, offsets beyond 2^31."""

import pytest
import torch

from benchmarks import gpu_parity

pytestmark = pytest.mark.gpu
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("case", gpu_parity.CASES)
def test_every_projection(case):
    assert len(list(gpu_parity.projections("cuda", DTYPES, [case]))) == len(DTYPES)


def test_eight_projections_at_once():
    assert len(list(gpu_parity.groups("cuda", DTYPES, (768, 512)))) == len(DTYPES)


@pytest.mark.parametrize("check", [gpu_parity.masks, gpu_parity.graphs, gpu_parity.offsets])
def test_on_the_device(check):
    assert list(check("cuda"))
