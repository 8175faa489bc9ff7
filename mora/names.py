"""What other libraries call a field or a projection, and what it is here."""

from __future__ import annotations

TARGETS = ("q", "k", "v", "out")
OTHER_NAMES = {
    "r": "rank",
    "lora_rank": "rank",
    "lora_alpha": "alpha, which is not divided by the rank: alpha = lora_alpha / r",
    "scaling": "alpha",
    "lora_dropout": "dropout",
    "target_modules": 'targets, out of "q", "k", "v", "out"',
    "layers_to_transform": "layers, last_layers or first_layer",
    "rank_pattern": 'rank, which may be {"image": {10: 4, 11: 8}, "text": 4}',
    "alpha_pattern": 'alpha, which may be {"image": 0.01, "text": 0.1}',
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
}
PACKED_NAMES = ("in_proj", "in_proj_weight", "qkv", "attn", "self_attn")
MLP_NAMES = (
    "mlp", "fc1", "fc2", "c_fc", "c_proj", "lin1", "lin2", "linear1", "linear2", "up_proj", "gate_proj", "down_proj",
)  # fmt: skip


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
        return " (a linear of the MLP, whose weight is not square: only attention is adapted so far)"
    return ""
