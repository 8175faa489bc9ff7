"""The methods compared: how each adapts the same CLIP, on the same projections, at the same rank."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from mora.adapters.pairs import pair_blocks, slots_of
from mora.adapters.patching import merge, patch
from mora.adapters.prompts import DCP, MMP, PromptSize, add_prompts
from mora.adapters.record import adapter_parameters
from mora.config import MoraConfig
from mora.system.checks import one_of
from mora.system.machine import need
from mora.towers.find import towers_of
from mora.towers.slots import Slot

MORA_VARIANTS = {
    "mora": "official",
    "mora-no-gram": "no-gram",
    "mora-fixed-gram": "fixed-gram",
    "mora-no-specific": "no-specific",
}
ZERO_SHOT, LINEAR, BITFIT, LAST_BLOCK = "zero-shot", "linear", "bitfit", "last-block"
PROMPTED = (MMP, DCP)
# Ranks, targets and blocks of the configuration mean nothing to them.
UNSIZED = (ZERO_SHOT, LINEAR, BITFIT, LAST_BLOCK, *PROMPTED)
METHODS = (LINEAR, "lora", "dora", BITFIT, LAST_BLOCK, *PROMPTED, *MORA_VARIANTS, ZERO_SHOT)


def adapt(
    model: Any,
    method: str,
    config: MoraConfig,
    lora_scale: float = 1.0,
    prompts: PromptSize = PromptSize(),  # noqa: B008 # immutable
) -> dict[str, nn.Parameter]:
    """Adapt `model` in place and return what is trained in it, by name; everything else is frozen.

    Adapters and prompts are drawn from torch's global generator: seed it before.

    Args:
        model: an open_clip or Hugging Face CLIP, not patched.
        method: "linear" trains nothing here (the head alone), "zero-shot" nor a head; "lora" and "dora" are PEFT's, on
            the projections and at the ranks of `config`; "bitfit" trains every bias of both towers, "last-block" all of
            the last block of each; "mmp" and "dcp" put prompts into a model (`mora.adapters.prompts`), with which the
            towers run in a `MissingModalityClassifier`; "mora" and its ablations are `mora.patch`.
        config: ranks, targets, blocks and dropout; alpha and init are MoRA's alone.
        lora_scale: `lora_alpha / rank` of LoRA and DoRA.
        prompts: length and depth of the prompts of "mmp" and "dcp".

    Raises:
        ValueError: unknown method, or `config` does not fit the model; prompts for a tower that cannot be cut.
        ImportError: LoRA or DoRA without PEFT.
    """
    one_of("method", method, METHODS)
    if method in MORA_VARIANTS:
        patch(model, config, variant=MORA_VARIANTS[method])
        return dict(adapter_parameters(model))
    model.requires_grad_(False)
    if method in ("lora", "dora"):
        add_lora(model, config, lora_scale, dora=method == "dora")
    elif method in PROMPTED:
        add_prompts(model, method, prompts)
    elif method == LAST_BLOCK:
        for tower in towers_of(model).values():
            tower.blocks(model)[-1].requires_grad_(True)
    elif method == BITFIT:
        for name, parameter in model.named_parameters():
            # not SigLIP's logit_bias, which is of neither tower and has no part in the embeddings
            parameter.requires_grad_(name.endswith("bias") and name != "logit_bias")
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def adapted_slots(model: nn.Module, config: MoraConfig) -> list[Slot]:
    """The attention blocks that `config` adapts, of every tower."""
    pairs = pair_blocks(slots_of(model, towers_of(model), config), config)
    return [slot for pair in pairs for slot in pair.values()]


def add_lora(model: nn.Module, config: MoraConfig, scale: float, dora: bool) -> None:
    """Put PEFT's LoRA or DoRA on every target, in place; ImportError where PEFT is absent."""
    peft = need("peft", "method: LoRA or DoRA")
    ranks: dict[str, int] = {}
    for slot in adapted_slots(model, config):
        targets = config.targets_of(slot.modality)
        slot.split(targets)
        # Anchored: PEFT matches plain names as suffixes, and the text tower's are suffixes of the image tower's.
        names = [f"^{re.escape(name)}" for name in slot.linear_names(targets)]
        ranks |= dict.fromkeys(names, config.specific_rank(slot.modality, slot.layer))
    lora = peft.LoraConfig(
        rank_pattern=ranks,
        alpha_pattern={name: scale * rank for name, rank in ranks.items()},
        lora_dropout=config.dropout,
        use_dora=dora,
        target_modules="|".join(ranks),
    )
    peft.inject_adapter_in_model(lora, model)


def fold(model: nn.Module, method: str, config: MoraConfig) -> nn.Module:
    """Fold what `adapt` added into the weights, in place, and return a plain CLIP: classes and keys as before.

    Raises ValueError for an unknown method, one that is no update of weights, or a W_eff that is not finite.
    """
    one_of("method", method, METHODS)
    if method in PROMPTED:
        raise ValueError(
            f"merge: got method {method!r}, whose prompts are no update of weights but rows before those of a sample, "
            "expected another method; mora evaluate and mora predict run its folder as it is"
        )
    if method in MORA_VARIANTS:
        return merge(model)
    if method in ("lora", "dora"):
        for slot in adapted_slots(model, config):
            targets = config.targets_of(slot.modality)
            for name in slot.linear_names(targets):
                layer: Any = model.get_submodule(name)
                layer.merge()
                model.set_submodule(name, layer.get_base_layer())
            slot.unsplit(targets)
    return model


def trained_tensors(model: nn.Module, method: str) -> dict[str, Tensor]:
    """What the method trained in `model`, detached, by name; MoRA's own names are those of `adapter_state_dict`."""
    if method in MORA_VARIANTS:
        named = dict(adapter_parameters(model))
    else:
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: parameter.detach() for name, parameter in named.items()}
