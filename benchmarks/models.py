"""CLIPs of the published sizes with random weights, in both libraries, and the ways to adapt one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import mora
from benchmarks import sizes
from benchmarks.providers import lora
from benchmarks.providers.official import make_official
from mora.towers import towers_of


@dataclass(frozen=True)
class Size:
    """A CLIP's towers, (width, heads, layers) each, its patch and image size, tokens of a text, vocabulary."""

    vision: tuple[int, int, int]
    text: tuple[int, int, int]
    patch: int = 16
    image: int = 224
    context: int = 77
    vocabulary: int = 49408
    embedding: int = 512


SIZES = {
    "ViT-B/16": Size(vision=(768, 12, 12), text=(512, 8, 12)),
    "ViT-L/14": Size(vision=(1024, 16, 24), text=(768, 12, 12), patch=14, embedding=768),
    "toy": Size(vision=(48, 2, 2), text=(32, 2, 2), image=32, context=12, vocabulary=99, embedding=24),
}
FAMILIES = ("Hugging Face", "open_clip")


def clip(name: str, family: str, device: str, layers: int | None = None) -> nn.Module:
    """A CLIP with random weights and quick GELU, as OpenAI's; `layers` cuts both towers to that depth."""
    size = SIZES[name]
    (vision, vision_heads, vision_depth), (text, text_heads, text_depth) = size.vision, size.text
    vision_depth, text_depth = layers or vision_depth, layers or text_depth
    if family == "open_clip":
        import open_clip

        return open_clip.CLIP(
            embed_dim=size.embedding,
            vision_cfg={"image_size": size.image, "patch_size": size.patch, "width": vision, "layers": vision_depth,
                        "head_width": vision // vision_heads},
            text_cfg={"context_length": size.context, "vocab_size": size.vocabulary, "width": text,
                      "heads": text_heads, "layers": text_depth},
            quick_gelu=True,
        ).to(device)  # fmt: skip
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(
        projection_dim=size.embedding,
        vision_config={"hidden_act": "quick_gelu", "hidden_size": vision, "num_attention_heads": vision_heads,
                       "num_hidden_layers": vision_depth, "intermediate_size": 4 * vision, "patch_size": size.patch,
                       "image_size": size.image},
        text_config={"hidden_act": "quick_gelu", "hidden_size": text, "num_attention_heads": text_heads,
                     "num_hidden_layers": text_depth, "intermediate_size": 4 * text, "vocab_size": size.vocabulary,
                     "max_position_embeddings": size.context, "bos_token_id": size.vocabulary - 2,
                     "eos_token_id": size.vocabulary - 1},
    )  # fmt: skip
    return CLIPModel(config).to(device)


def inputs(model: nn.Module, batch: int, device: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random images [batch, 3, H, W] and texts [batch, L] that end at their last token."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        image, text = (tower.random(model, batch).to(device) for tower in towers_of(model).values())
    return image, text


@dataclass(frozen=True)
class Adapted:
    """One provider's model, its last block by modality, and its adapted weights by its own formula, float64.

    `formula()` maps the name of a parameter of the plain model to the weight that the adapter makes of it.
    """

    model: Any
    blocks: dict[str, nn.Module]
    formula: Callable[[], dict[str, Tensor]] = dict

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The trainable parameters, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}


def adapt(base: nn.Module, provider: str, last_layers: int, backend: str = "torch") -> Adapted:
    """A copy of `base` adapted in q and v of its last blocks: as a trained one, so that every factor matters.

    `provider` is "official", "ours", "frozen", or a name of `lora.NAMES` or `lora.PACKED`; total rank 8, dropout 0.1.
    """
    model = copy.deepcopy(base).requires_grad_(False)
    slots = {modality: tower.slots(model) for modality, tower in towers_of(model).items()}
    blocks = {modality: each[-1].parent for modality, each in slots.items()}
    torch.manual_seed(1)
    if provider == "frozen":
        return Adapted(model, blocks)
    if provider in (*lora.NAMES, lora.PACKED):
        paths = [slot.path for each in slots.values() for slot in each[len(each) - last_layers :]]
        return Adapted(model, blocks, peft(model, paths, provider))
    mora.patch(
        model,
        rank=sizes.RANK,
        alpha=sizes.ALPHA,
        dropout=sizes.DROPOUT,
        targets=("q", "v"),
        last_layers=last_layers,
        backend=backend,
    )
    with torch.no_grad():
        for name, parameter in mora.adapter_parameters(model):
            if name.endswith("specific_b"):
                parameter.normal_(std=0.1)
            elif name.endswith("magnitude"):
                parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    return Adapted(make_official(model) if provider == "official" else model, blocks)


def peft(model: nn.Module, paths: list[str], provider: str) -> Callable[[], dict[str, Tensor]]:
    """Put PEFT's adapters into the attentions at `paths`, in place; return the adapted weights' formula."""
    if provider == lora.PACKED:
        lora.adapt_packed(model, [f"{path}.in_proj_weight" for path in paths], 2 * sizes.RANK)
    else:
        names = [f"{path}.{target}_proj" for path in paths for target in ("q", "v")]
        lora.adapt(model, names, 2 * sizes.RANK, sizes.DROPOUT, lora.NAMES[provider])

    def formula() -> dict[str, Tensor]:
        found = {}
        for name, layer in lora.layers(model).items():
            packed = provider == lora.PACKED
            weight = layer.base_layer.in_proj_weight if packed else layer.base_layer.weight
            factors = {key: value.detach().double() for key, value in lora.factors(layer).items()}
            found[f"{name}.{'in_proj_weight' if packed else 'weight'}"] = lora.formula(weight.double(), **factors)
        return found

    return formula


def with_weights(base: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """A float64 copy of `base` in which the named parameters have other values."""
    model = copy.deepcopy(base).double().requires_grad_(False)
    for name, weight in weights.items():
        model.get_parameter(name).data.copy_(weight)
    return model


def embeddings(model: nn.Module, image: Tensor, text: Tensor) -> Tensor:
    """[image; text] [B, 2 e]."""
    inputs = {"image": image, "text": text}
    return torch.cat([tower.encode(model, inputs[name]) for name, tower in towers_of(model).items()], dim=-1)
