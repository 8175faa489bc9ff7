"""The methods compared: how each adapts the same CLIP, on the same projections, at the same rank."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

import mora
from mora.attention import PACKED, MultiheadAttention, PackedSlice
from mora.demo.settings import INSTALL, MORA_VARIANTS, Settings
from mora.families import family_of


class SplitAttention(MultiheadAttention):
    """Stands for `nn.MultiheadAttention` with the targets of its packed q, k, v as `nn.Linear` children.

    PEFT sees one `MultiheadAttention` where three projections are packed, applies `out_proj` twice and refuses DoRA;
    given this module it wraps exactly the children named "q", "k", "v". They hold copies of the packed weights.
    """

    def __init__(self, original: nn.MultiheadAttention, targets: tuple[str, ...]) -> None:
        super().__init__(original)
        for target in targets:
            part = PackedSlice(self, PACKED.index(target))
            rows, columns = part.weight.shape
            linear = nn.Linear(columns, rows, bias=part.bias is not None)
            linear.weight = nn.Parameter(part.weight.detach().clone())
            if part.bias is not None:
                linear.bias = nn.Parameter(part.bias.detach().clone())
            setattr(self, target, linear)


def split_attention(model: Any, targets: tuple[str, ...], last_layers: int) -> list[str]:
    """Split q, k, v in the last blocks of both towers, in place, and return the names of the new `nn.Linear`s."""
    names: list[str] = []
    for sites in family_of(model).towers(model).values():
        for site in sites[len(sites) - last_layers :]:
            setattr(site.parent, site.name, SplitAttention(site.attention, targets))
            names.extend(f"{site.path}.{target}" for target in targets)
    return names


def add_lora(model: Any, settings: Settings, scale: float, dora: bool) -> None:
    """Put PEFT's LoRA or DoRA on the split projections, in place; ImportError where PEFT is absent."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError(f"methods: LoRA and DoRA need peft: {INSTALL}") from error
    names = split_attention(model, settings.targets, settings.last_layers)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=scale * settings.rank,  # type: ignore[arg-type] # any number will do
        lora_dropout=settings.dropout,
        use_dora=dora,
        target_modules=names,
    )
    inject_adapter_in_model(config, model)


def adapt(base: Any, method: str, settings: Settings) -> tuple[Any, dict[str, nn.Parameter]]:
    """Return an adapted copy of `base` and what is trained in it, by name; `base` itself is not touched.

    "frozen" trains nothing. Adapters are drawn from torch's global generator: seed it before.
    """
    model = copy.deepcopy(base).requires_grad_(False)
    choice = settings.choice(method)
    if method == "frozen":
        return model, {}
    if method in MORA_VARIANTS:
        mora.patch(
            model,
            rank=settings.rank,
            alpha=choice.scale,
            dropout=settings.dropout,
            targets=settings.targets,
            last_layers=settings.last_layers,
            variant=MORA_VARIANTS[method],
        )
        return model, dict(mora.adapter_parameters(model))
    add_lora(model, settings, choice.scale, dora=method == "dora")
    return model, {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
