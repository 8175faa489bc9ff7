"""Weights of other libraries that cannot be adapted: refused when patching, by name, with the way out."""

import pytest
import torch
from torch import nn

import mora
from tests.bases.worlds import by_bitsandbytes, by_torchao, linears
from tests.mora.oracle import SMALL


def hugging_face():
    return SMALL["hugging_face"]()


def first(model):
    """The linear that is looked at first."""
    return model.vision_model.encoder.layers[0].self_attn.q_proj


def not_quantised():
    made = pytest.importorskip("bitsandbytes").nn.Linear4bit
    model = hugging_face()
    for name, module in linears(model):
        model.set_submodule(name, made(module.in_features, module.out_features))
    return model


def offloaded(model):
    return pytest.importorskip("accelerate").cpu_offload(model, torch.device("cpu"))


def beside_packed():
    """The output projection of an `nn.MultiheadAttention`, which reads its weight and never calls it."""
    model, bitsandbytes = SMALL["open_clip"](), pytest.importorskip("bitsandbytes")
    for block in model.transformer.resblocks:
        block.attn.out_proj = bitsandbytes.nn.Linear4bit(32, 32).to("cpu")
    return model


def partitioned():
    """As ZeRO-3 leaves a parameter: no elements, and numbers of DeepSpeed's own."""
    model = hugging_face()
    for _, module in linears(model):
        module.weight.data = torch.empty(0)
        module.weight.ds_id, module.weight.ds_shape = 1, (32, 32)
    return model


def instance_forward():
    model = hugging_face()
    accelerate = pytest.importorskip("accelerate")
    for _, module in linears(model):
        accelerate.hooks.add_hook_to_module(module, accelerate.hooks.ModelHook())
    return model


OFFLOADED = "packed q, k, v may not be dispatched or offloaded"
CASES = {
    "8 bit in 16": (
        lambda: by_bitsandbytes("Linear8bitLt", has_fp16_weights=True)(hugging_face()),
        r"vision_model\.encoder\.layers\.0.*q_proj is a bitsandbytes.*Linear8bitLt, whose weights are not quantised",
    ),
    "4 bit to be": (not_quantised, "q_proj is a bitsandbytes.*Linear4bit, which is not quantised yet: move the model"),
    "activations as well": (
        lambda: by_torchao("Int8DynamicActivationInt8WeightConfig")(hugging_face()),
        "q_proj.weight is a torchao.*which quantises what it multiplies as well; expected Int8WeightOnlyConfig or",
    ),
    "other codes": (
        lambda: by_torchao("IntxWeightOnlyConfig")(hugging_face()),
        "q_proj.weight is a torchao.*which is another kind; expected Int8WeightOnlyConfig or Float8WeightOnlyConfig",
    ),
    "quantised and offloaded": (
        lambda: offloaded(by_bitsandbytes("Linear8bitLt", has_fp16_weights=False)(hugging_face())),
        "q_proj is a bitsandbytes.*which is offloaded as well",
    ),
    "packed and offloaded": (lambda: offloaded(SMALL["open_clip"]()), OFFLOADED),
    "beside packed": (beside_packed, "out_proj, found bitsandbytes.*linears that stand alone may be quantised"),
    "ZeRO-3": (partitioned, r"q_proj\.weight is partitioned by DeepSpeed ZeRO-3: W_eff needs whole weights"),
    "another hook": (instance_forward, "q_proj, found torch.*whose forward was replaced on the instance"),
}


@pytest.mark.parametrize("case", CASES)
def test_weights_that_cannot_be_adapted_are_named(case):
    make, message = CASES[case]
    model = make()
    with pytest.raises(ValueError, match=message):
        mora.patch(model)
    assert not hasattr(model, "mora")


def test_a_dtype_without_arithmetic_is_named():
    model = hugging_face()
    linear = first(model)
    linear.weight = nn.Parameter(linear.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(ValueError, match=r"q_proj\.weight has dtype torch\.float8_e4m3fn, expected one of float64, "):
        mora.patch(model)
