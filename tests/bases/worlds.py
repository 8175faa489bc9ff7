"""Small CLIPs whose linears are quantised by the libraries themselves, and plain ones that hold the same values."""

import copy

import pytest
from torch import nn

from tests.mora.oracle import SMALL


def linears(model, parts=("self_attn", "mlp")):
    """(name, module) of the linears of the blocks."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(part in name for part in parts)
    ]


def by_bitsandbytes(kind, **options):
    """As transformers' BitsAndBytesConfig does: another module in the place of every linear."""

    def quantise(model):
        made = getattr(pytest.importorskip("bitsandbytes").nn, kind)
        for name, module in linears(model):
            other = made(module.in_features, module.out_features, **options)
            other.load_state_dict(module.state_dict())
            model.set_submodule(name, other.requires_grad_(False).to("cpu").train(module.training))
        return model

    return quantise


def by_torchao(config, **options):
    """`quantize_`, which puts a tensor of its own in the place of every weight."""

    def quantise(model):
        quantization = pytest.importorskip("torchao.quantization")
        quantization.quantize_(model, getattr(quantization, config)(**options))
        return model

    return quantise


QUANTISED = {
    "nf4": by_bitsandbytes("Linear4bit", quant_type="nf4"),
    "fp4": by_bitsandbytes("Linear4bit", quant_type="fp4", compress_statistics=False),
    "int8": by_bitsandbytes("Linear8bitLt", has_fp16_weights=False),
    "torchao int8": by_torchao("Int8WeightOnlyConfig"),
    "torchao float8": by_torchao("Float8WeightOnlyConfig"),
}


def dequantised(linear):
    """W [out, in] in float32, by the library's own function."""
    weight = linear.weight
    if hasattr(weight, "dequantize") and type(weight).__module__.startswith("torchao"):
        return weight.dequantize()
    if type(linear).__name__ == "Linear4bit":
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state)
    if type(linear).__name__ == "Linear8bitLt":
        from bitsandbytes.functional import int8_vectorwise_dequant

        scale = linear.weight.SCB if linear.state.SCB is None else linear.state.SCB
        return int8_vectorwise_dequant(weight.data, scale)
    return weight.detach()


def plain(model):
    """A copy in which every linear of a block is an `nn.Linear` with the dequantised weight."""
    other = copy.deepcopy(model)
    for name, module in linears(model):
        made = nn.Linear(module.in_features, module.out_features)
        made.load_state_dict({"weight": dequantised(module), "bias": module.bias})
        other.set_submodule(name, made)
    return other


def quantised(kind, family="hugging_face"):
    """A quantised CLIP in training, where bitsandbytes in 8 bit does not round what it multiplies; nothing drops."""
    return QUANTISED[kind](SMALL[family]()).train()
