"""Quantized and offloaded weights, by the libraries that make them: refused when patching, with the way out."""

import pytest
import torch
from torch import nn

import mora
from tests.mora.models import MODELS, hugging_face_model


def replace(model, make):
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and "self_attn" in name:
            other = make(module.in_features, module.out_features)
            other.load_state_dict(module.state_dict())
            model.set_submodule(name, other.to("cpu"))
    return model


def bits(kind, **options):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    return replace(hugging_face_model(), lambda i, o: getattr(bitsandbytes.nn, kind)(i, o, **options))


def torchao(kind):
    quantization = pytest.importorskip("torchao.quantization")
    model = hugging_face_model()
    quantization.quantize_(model, getattr(quantization, kind)())
    return model


def offloaded(family):
    accelerate = pytest.importorskip("accelerate")
    return accelerate.cpu_offload(MODELS[family](), torch.device("cpu"))


CASES = {
    "8 bit": (lambda: bits("Linear8bitLt", has_fp16_weights=False), "found bitsandbytes.* in 16 or 32 bit"),
    "4 bit": (lambda: bits("Linear4bit"), "found bitsandbytes.* in 16 or 32 bit"),
    "int8": (lambda: torchao("Int8WeightOnlyConfig"), "is a torchao.* then quantize the merged model"),
    "float8": (lambda: torchao("Float8WeightOnlyConfig"), "is a torchao.* then quantize the merged model"),
    **{f"offloaded {name}": (lambda name=name: offloaded(name), "patch before dispatching") for name in MODELS},
}


@pytest.mark.parametrize("case", CASES)
def test_weights_that_cannot_be_adapted_are_named(case):
    make, message = CASES[case]
    model = make()
    with pytest.raises(ValueError, match=message):
        mora.patch(model)
    assert not hasattr(model, "mora")


def test_a_dtype_without_arithmetic_is_named():
    model = hugging_face_model()
    linear = model.vision_model.encoder.layers[3].self_attn.q_proj
    linear.weight = nn.Parameter(linear.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(ValueError, match=r"q_proj\.weight has dtype torch\.float8_e4m3fn, expected one of float64, "):
        mora.patch(model)
