"""`MoraLinear` on projections whose widths differ, and the factors of further widths in `CommonFactors`."""

import pytest
import torch
from torch import nn

import mora
from mora.methods.factors import CommonFactors
from mora.methods.linear import MoraLinear
from mora_kernels.testing import assert_parity

TABLE = {torch.float32: 5e-6, torch.float64: 1e-10}
WIDTHS = {"image": 32, "text": 24}
DEVICE = torch.device("cpu")


def commons(further=None, dtype=torch.float32):
    torch.manual_seed(0)
    return CommonFactors(WIDTHS, 3, dtype, DEVICE, further)


def perceptron(config=None, dtype=torch.float32):
    """fc1 and fc2 of an MLP, adapted, and their common factors."""
    common = commons({"image": (80, 32, 80)}, dtype)
    config = config or mora.MoraConfig(rank=2, common_rank=3, alpha=0.05, dropout=0.0)
    torch.manual_seed(1)
    layers = [nn.Linear(32, 80, dtype=dtype), nn.Linear(80, 32, dtype=dtype)]
    adapted = [MoraLinear(layer, common, "image", config) for layer in layers]
    for one in adapted:
        if one.specific_b is not None:
            nn.init.normal_(one.specific_b, std=0.1)
    return common, layers, adapted


def expected(linear, one, common, variant="official"):
    """W_eff of one projection by equation (1), in plain PyTorch."""

    def direction(matrix):
        return matrix / matrix.norm(dim=0).clamp(min=1e-5)

    side = {32: common.image, 80: common.image_80}
    fixed = {"no-gram": 1.0, "fixed-gram": common.text.shape[0] / 3}  # G = I, and the mean of S^T S at the start
    eye = torch.eye(3, dtype=linear.weight.dtype)
    middle = fixed[variant] * eye if variant in fixed else common.text.T @ common.text
    rows, columns = linear.weight.shape
    weight = linear.weight.detach()
    result = one.common_magnitude * direction(weight + one.alpha * side[rows] @ middle @ side[columns].T)
    if one.specific_a is not None:
        update = (one.specific_a @ one.specific_b).T
        result = result + one.specific_magnitude * direction(weight + one.alpha * update)
    return result


@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
@pytest.mark.parametrize("variant", ["official", "no-gram", "fixed-gram", "no-specific"])
def test_an_mlp_and_every_gradient(variant, backend):
    config = mora.MoraConfig(rank=2, common_rank=3, alpha=0.05, dropout=0.0, variant=variant, backend=backend)
    common, layers, (first, second) = perceptron(config)
    x = torch.randn(5, 32, requires_grad=True)
    leaves = {"x": x, **dict(common.named_parameters())}
    leaves |= {f"{i}.{n}": p for i, one in enumerate((first, second)) for n, p in one.named_parameters()
               if n not in ("weight", "bias")}  # fmt: skip
    y = second(torch.nn.functional.gelu(first(x)))
    y.square().sum().backward()
    got = {name: leaf.grad.clone() for name, leaf in leaves.items() if leaf.grad is not None}
    for leaf in leaves.values():
        leaf.grad = None
    hidden = x
    weights = [expected(*each, common, variant) for each in zip(layers, (first, second), strict=True)]
    hidden = torch.nn.functional.linear(torch.nn.functional.gelu(
        torch.nn.functional.linear(x, weights[0], layers[0].bias)), weights[1], layers[1].bias)  # fmt: skip
    hidden.square().sum().backward()
    assert_parity("y", y, hidden, TABLE)
    for one, weight in zip((first, second), weights, strict=True):
        assert_parity("effective", one.effective_weight(), weight, TABLE)
    assert got.keys() == {name for name, leaf in leaves.items() if leaf.grad is not None}
    for name, grad in got.items():
        assert_parity(name, grad, leaves[name].grad, {torch.float32: 3e-5})


def test_names_are_stable_and_those_of_a_square_adapter_are_as_before():
    assert list(commons().state_dict()) == ["image", "text"]
    assert list(commons({"image": (32,)}).state_dict()) == ["image", "text"]
    further = commons({"text": (96, 48), "image": (80, 32)})
    assert list(further.state_dict()) == ["image", "text", "text_48", "text_96", "image_80"]
    assert further.modalities == ("image", "text") and further.others("image")[0] is further.text
    other = commons({"text": (48, 96), "image": (80,)})
    other.load_state_dict(further.state_dict())
    assert torch.equal(other.text_96, further.text_96)
    assert "image_80=(80, 3)" in repr(further)
    plain, wide = commons(), commons({"image": (80,)})
    assert torch.equal(plain.image, wide.image) and torch.equal(plain.text, wide.text), "same draws for the same seed"
    assert wide.image_80.detach().std() == pytest.approx(3**-0.5, rel=0.2)


def test_shapes_and_the_transposed_update():
    """fc1 and fc2 read the same two factors: their common updates are each other's transpose."""
    common, _, (first, second) = perceptron()
    assert (first.in_features, first.out_features) == (32, 80)
    assert first.common_magnitude.shape == (32,) and second.common_magnitude.shape == (80,)
    assert first.specific_b.shape == (2, 80) and second.specific_a.shape == (80, 2)
    assert first.factors()[0] is common.image and first.common_out is common.image_80
    assert second.factors()[0] is common.image_80 and second.common_out is common.image
    assert MoraLinear(nn.Linear(80, 80), common, "image", mora.MoraConfig()).common_out is None


def test_identity_start_and_disabled():
    config = mora.MoraConfig(rank=2, common_rank=3, alpha=0.05, init="identity")
    _, layers, adapted = perceptron(config)
    for layer, one in zip(layers, adapted, strict=True):
        nn.init.zeros_(one.specific_b)
        one.eval()
        x = torch.randn(4, layer.in_features)
        assert_parity("y", one(x), layer(x), TABLE)


def test_a_width_without_a_factor_is_named():
    with pytest.raises(ValueError, match=r"common: got the factors image \[32, 3\], text .*of image for width 80"):
        MoraLinear(nn.Linear(32, 80), commons(), "image", mora.MoraConfig())
    with pytest.raises(ValueError, match="further: got modality 'audio', expected one of image, text"):
        commons({"audio": (8,)})


def test_memory_that_is_new_is_drawn():
    common = CommonFactors(WIDTHS, 3, torch.float32, torch.device("meta"), {"image": (80,)}).to_empty(device="cpu")
    assert common.image_80.detach().std() == pytest.approx(3**-0.5, rel=0.2)
    late = CommonFactors(WIDTHS, 3, torch.float32, torch.device("meta"), {"image": (80,)})
    late.materialise({"image": DEVICE, "text": DEVICE})
    assert not late.image_80.is_meta and late.image_80.detach().std() == pytest.approx(3**-0.5, rel=0.2)
