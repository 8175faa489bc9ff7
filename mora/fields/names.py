"""The targets, and what other libraries call them and the fields of a configuration."""

from __future__ import annotations

ATTENTION = ("q", "k", "v", "out")
MLP = ("fc1", "fc2")
TARGETS = (*ATTENTION, *MLP)
OTHER_NAMES = {
    "r": "rank",
    "lora_rank": "rank",
    "scaling": "lora_alpha / rank of LoRA, alpha of MoRA",
    "lora_dropout": "dropout",
    "target_modules": 'targets, out of "q", "k", "v", "out", "fc1", "fc2"',
    "layers_to_transform": "layers, last_layers or first_layer",
    "use_dora": 'method, which may be "dora"',
    "init_lora_weights": "init",
}
SYNONYMS = {
    **{
        name: target
        for target in "qkv"
        for name in (f"{target}_proj", f"{target}_lin", f"{target}_linear", f"to_{target}", f"w{target}")
    },
    **dict.fromkeys(("out_proj", "o_proj", "o", "to_out", "out_lin", "wo", "proj"), "out"),
    "query": "q",
    "key": "k",
    "value": "v",
    **dict.fromkeys(("fc1", "c_fc", "lin1", "linear1", "up_proj"), "fc1"),
    **dict.fromkeys(("fc2", "c_proj", "lin2", "linear2", "down_proj"), "fc2"),
}
PACKED_NAMES = ("in_proj", "in_proj_weight", "qkv", "attn", "self_attn")
MLP_NAMES = ("mlp", "ffn", "feed_forward", "gate_proj")


def target_of(name: str) -> str | None:
    """The target that a name stands for, PEFT's and transformers' included ("q_proj", "self_attn.query"), or None."""
    last = name.rpartition(".")[2]
    return name if name in TARGETS else SYNONYMS.get(last)


def target_hint(target: object) -> str:
    """What a name that is no target means elsewhere, in parentheses; "" for one that nobody uses."""
    last = target.rpartition(".")[2] if isinstance(target, str) else ""
    if last in PACKED_NAMES:
        return " (its parts are 'q', 'k', 'v' here)"
    if last in MLP_NAMES:
        return " (the linears of the MLP are 'fc1' and 'fc2' here)"
    return ""
