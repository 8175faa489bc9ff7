"""Both backends against single projections computed by the authors' implementation, in float64."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

import mora_kernels
from mora_kernels.testing import WEIGHT_TOLERANCE, assert_parity

FILE = Path(__file__).parents[1] / "golden" / "official_layers.safetensors"
OTHER = {"text": "vision", "vision": "text"}


def read():
    with safe_open(FILE, "pt") as file:
        return json.loads(file.metadata()["cases"]), {key: file.get_tensor(key) for key in file.keys()}


CASES, TENSORS = read()


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("modality", ["text", "vision"])
@pytest.mark.parametrize("case", CASES)
def test_projection_equals_the_official_layer(case, modality, backend):
    def tensor(name):
        return TENSORS[f"{case}.{modality}.{name}"]

    own, other = f"common_{modality}", f"common_{OTHER[modality]}"
    names = ["x", own, other, "specific_a", "specific_b", "common_magnitude", "specific_magnitude"]
    leaves = {name: tensor(name).clone().requires_grad_() for name in names}
    factors = (
        leaves[own],
        leaves[other],
        leaves["specific_a"],
        leaves["specific_b"],
        leaves["common_magnitude"],
        leaves["specific_magnitude"],
        CASES[case]["alpha"],
    )
    y = mora_kernels.mora_linear(leaves["x"], tensor("weight"), tensor("bias"), *factors, backend=backend)
    (y * tensor("grad_y")).sum().backward()
    merged = mora_kernels.effective_weight(tensor("weight"), *factors, backend=backend)

    assert_parity("y", y, tensor("y"), WEIGHT_TOLERANCE)
    assert_parity("merged_weight", merged, tensor("merged_weight"), WEIGHT_TOLERANCE)
    for name, leaf in leaves.items():
        assert_parity(f"grad.{name}", leaf.grad, tensor(f"grad.{name}"), WEIGHT_TOLERANCE)
