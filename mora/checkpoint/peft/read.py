"""Read PEFT's LoRA and DoRA files, strictly: what is not understood is refused by its name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mora.checkpoint.peft.names import PREFIX, Place
from mora.checkpoint.tensors import LONGEST_NAME, check_plain, check_values, config_from
from mora.config import MoraConfig
from mora.system.checks import is_number, is_whole
from mora.system.files import read_json, read_tensors
from mora.system.messages import listed, printable, shown

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
READ = (
    *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "lora_dropout", "use_dora", "use_rslora"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "inference_mode", "auto_mapping"),
    *("base_model_name_or_path", "revision", "task_type", "peft_version", "megatron_core", "qalora_group_size"),
)
# Starts that leave the pretrained weights as they are; others (PiSSA, OLoRA, CorDA, LoftQ) change them.
STARTS = (True, False, "gaussian", "eva", "orthogonal")
KINDS = re.compile(r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector(?:\.weight)?)")
OUTSIDE = ".base_layer.out_proj"


def is_peft(fields: Mapping[str, Any]) -> bool:
    """Whether a configuration is one of PEFT's."""
    return isinstance(fields.get("peft_type"), str) and fields["peft_type"] != "MORA"


def checked_fields(source: str, fields: Mapping[str, Any]) -> None:
    """Raise ValueError that names what of a configuration changes what is computed and is not supported."""
    if fields["peft_type"] != "LORA":
        raise ValueError(f"{source}: peft_type is {shown(fields['peft_type'])}, expected 'LORA', the only tuner read")
    if fields.get("use_mora"):
        raise ValueError(f"{source}: use_mora is set: that is another MoRA (High-Rank Updating), expected a plain LoRA")
    if fields.get("init_lora_weights", True) not in STARTS:
        raise ValueError(
            f"{source}: init_lora_weights is {shown(fields['init_lora_weights'])}, which changes the pretrained "
            f"weights, expected one of {', '.join(map(repr, STARTS))}"
        )
    for name, value in fields.items():
        idle = value is None or value is False or value == {} or value == [] or (name == "bias" and value == "none")
        if name not in (*READ, "init_lora_weights") and not idle:
            raise ValueError(
                f"{source}: {printable(name)[:LONGEST_NAME]} is {shown(value)}, expected none: not supported"
            )
    if not is_whole(fields.get("r", 8)) or not is_number(fields.get("lora_alpha", 8)):
        raise ValueError(f"{source}: r and lora_alpha are {shown(fields.get('r'))}, {shown(fields.get('lora_alpha'))}")
    for name in ("rank_pattern", "alpha_pattern"):
        if not isinstance(fields.get(name) or {}, Mapping):
            raise ValueError(f"{source}: {name} is {shown(fields[name])}, expected a mapping")
    for name in ("use_dora", "use_rslora"):
        if not isinstance(fields.get(name, False), bool):
            raise ValueError(f"{source}: {name} is {shown(fields[name])}, expected true or false")


def in_pattern(pattern: Mapping[str, Any], path: str, usual: Any) -> Any:
    """The value of a module as PEFT finds it: by its path, or by the end of it."""
    for key, value in pattern.items():
        plain = key.removeprefix("^").replace("\\", "")
        if path == plain or (path.endswith(f".{plain}") and not key.startswith("^")):
            return value
    return usual


def by_module(source: str, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """A, B and m of every module by its path; ValueError that names a tensor that is none of them."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = KINDS.fullmatch(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
        if match is None:
            why = ""
            why = " (modules of embeddings are not adapted here)" if "lora_embedding" in name else why
            why = " (lora_bias)" if name.endswith("lora_B.bias") else why
            raise ValueError(
                f"{source}: got {printable(name)[:LONGEST_NAME]}{why}, expected lora_A.weight, lora_B.weight and "
                f"lora_magnitude_vector of modules below {PREFIX!r}"
            )
        found.setdefault(match[1], {})[match[2].removesuffix(".weight")] = tensor
    return found


def split_packed(
    source: str, modules: dict[str, dict[str, Tensor]], known: Mapping[str, Place]
) -> dict[str, tuple[str, dict[str, Tensor]]]:
    """(path under which PEFT has it, tensors) of every projection by its own path; q, k, v of a packed one apart.

    PEFT's LoRA on `nn.MultiheadAttention` has one A for q, k and v, and B of all three. It adds out_proj's update
    twice (peft 0.21.2 and before), so that what a file means that has one depends on the version: it is refused.
    """
    found: dict[str, tuple[str, dict[str, Tensor]]] = {}
    for path, own in modules.items():
        packed = path.removesuffix(OUTSIDE)
        if f"{packed}.q" not in known or path in known:
            found[path] = (path, own)
        elif path != packed:
            if own.get("lora_B") is None or own["lora_B"].any():
                raise ValueError(
                    f"{source}: {path} is the out_proj of PEFT's MultiheadAttention, whose update it adds twice (peft "
                    "0.21.2): what it means depends on the version; expected one that is zero, or a file of split "
                    "projections (mora.patch(model, method='lora', targets=('q', 'k', 'v', 'out')))"
                )
        else:
            if "lora_magnitude_vector" in own or own.get("lora_B") is None or len(own["lora_B"]) % 3:
                raise ValueError(f"{source}: {path} has {listed(own)}, expected a LoRA of packed q, k, v")
            for target, rows in zip("qkv", own["lora_B"].chunk(3), strict=True):
                found[f"{path}.{target}"] = (path, {"lora_A": own.get("lora_A", rows), "lora_B": rows})
    return found


def read_folder(folder: Path, known: Mapping[str, Place]) -> tuple[MoraConfig, dict[str, Tensor]]:
    """(configuration, tensors by our names) of a folder of PEFT's, for a model with these projections.

    Raises ValueError that names what does not fit or is not supported.
    """
    source, weights = str(folder / CONFIG), folder / WEIGHTS
    fields = read_json(folder / CONFIG)
    checked_fields(source, fields)
    if not weights.is_file():
        others = sorted(path.name for path in folder.iterdir())
        raise ValueError(f"folder: got {folder} with {listed(others)}, expected {WEIGHTS}: pickles are never read")
    content, _ = read_tensors(weights)
    check_plain(str(weights), content)
    modules = split_packed(str(weights), by_module(str(weights), content), known)
    dora, stable = fields.get("use_dora", False), fields.get("use_rslora", False)
    tensors: dict[str, Tensor] = {}
    ranks: dict[Place, int] = {}
    alphas: dict[Place, float] = {}
    for path, (theirs, own) in modules.items():
        if path not in known:
            raise ValueError(
                f"{weights}: {printable(path)[:LONGEST_NAME]} is no projection that mora adapts in this model, "
                f"expected some of {listed(known, 4)}"
            )
        wanted = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if dora else set())
        if own.keys() != wanted or own["lora_A"].dim() != 2:
            raise ValueError(f"{weights}: {path} has {listed(sorted(own))}, expected {listed(sorted(wanted))}")
        place = known[path]
        ranks[place] = own["lora_A"].shape[0]
        expected = in_pattern(fields.get("rank_pattern") or {}, theirs, fields.get("r", 8))
        if ranks[place] != expected:
            raise ValueError(f"{weights}: {path} has rank {ranks[place]}, {CONFIG} says {shown(expected)}")
        alphas[place] = in_pattern(fields.get("alpha_pattern") or {}, theirs, fields.get("lora_alpha", 8))
        named = {"lora_a": own["lora_A"], "lora_b": own["lora_B"], "magnitude": own.get("lora_magnitude_vector")}
        tensors |= {f"{place.label}.{kind}": value for kind, value in named.items() if value is not None}
    if not tensors:
        raise ValueError(f"{weights}: got no tensors, expected those of a LoRA")
    check_values(str(weights), tensors)
    towers = list(dict.fromkeys(place.modality for place in known.values()))
    dropout = fields.get("lora_dropout", 0.0)
    return config_of(source, towers, ranks, alphas, "dora" if dora else "lora", stable, dropout), tensors


def config_of(
    source: str,
    towers: list[str],
    ranks: Mapping[Place, int],
    alphas: Mapping[Place, float],
    method: str,
    stable: bool,
    dropout: Any,
) -> MoraConfig:
    """The configuration that adapts these projections; ValueError where blocks of a tower have other targets."""
    layers: dict[str, set[int]] = {}
    targets: dict[str, dict[int, set[str]]] = {}
    for place in ranks:
        layers.setdefault(place.modality, set()).add(place.layer)
        targets.setdefault(place.modality, {}).setdefault(place.layer, set()).add(place.target)
    for modality, each in targets.items():
        if len({frozenset(own) for own in each.values()}) > 1:
            found = "; ".join(f"block {layer}: {', '.join(sorted(own))}" for layer, own in sorted(each.items()))
            raise ValueError(f"{source}: adapts {modality} {found}; expected the same projections in every block")
    own = {modality: tuple(sorted(next(iter(each.values())))) for modality, each in targets.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    same = len(own) == len(towers) and len({*own.values()}) == 1
    return config_from(
        source,
        {
            "method": method,
            "adapt": None if len(own) == len(towers) else {m: method if m in own else "frozen" for m in towers},
            "rank": rank,
            "lora_alpha": alpha,
            "use_rslora": stable,
            "rank_pattern": {place.label: value for place, value in ranks.items() if value != rank} or None,
            "alpha_pattern": {place.label: value for place, value in alphas.items() if value != alpha} or None,
            "dropout": dropout,
            "targets": next(iter(own.values())) if same else own,
            "layers": {modality: sorted(each) for modality, each in layers.items()},
        },
    )
