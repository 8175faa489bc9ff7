"""The baseline is the official layer: our own writing of it equals the authors' tensors in float64, gradients too."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from benchmarks.providers.official import official_linear
from mora_kernels.testing import LINEAR_TOLERANCE, assert_parity

PATH = Path(__file__).parents[1] / "tests" / "golden" / "official_layers.safetensors"
FILE = safe_open(PATH, "pt")
CASES = json.loads(FILE.metadata()["cases"])
OWN = ("specific_a", "specific_b", "common_magnitude", "specific_magnitude")


@pytest.mark.parametrize("modality", ["vision", "text"])
@pytest.mark.parametrize("case", CASES)
def test_golden(case, modality):
    def tensor(name):
        return FILE.get_tensor(f"{case}.{modality}.{name}")

    other = {"vision": "text", "text": "vision"}[modality]
    names = ("x", f"common_{modality}", f"common_{other}", *OWN)
    leaves = {name: tensor(name).requires_grad_() for name in names}
    x, common, other_common, *own = leaves.values()
    y = official_linear(x, tensor("weight"), tensor("bias"), common, [other_common], *own, CASES[case]["alpha"])
    assert y.dtype == torch.float64
    assert_parity("y", y, tensor("y"), LINEAR_TOLERANCE)
    gradients = torch.autograd.grad(y, list(leaves.values()), tensor("grad_y"))
    for name, gradient in zip(leaves, gradients, strict=True):
        assert_parity(name, gradient, tensor(f"grad.{name}"), LINEAR_TOLERANCE)
