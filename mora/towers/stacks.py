"""Where the blocks of a `transformers` encoder stand and what they call q, k, v and out: a row per `model_type`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from mora.towers.admission import located
from mora.towers.kinds import model_types
from mora.towers.layouts import Fused, Separate
from mora.towers.slots import Slot
from mora.towers.tower import descend


def names(q: str, k: str, v: str, out: str) -> dict[str, str]:
    """Dotted paths of the four projections below a block, by target."""
    return {"q": q, "k": k, "v": v, "out": out}


BERT = names("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
CLIP = names("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
T5 = names("layer.0.SelfAttention.q", "layer.0.SelfAttention.k", "layer.0.SelfAttention.v", "layer.0.SelfAttention.o")
BLIP = names("self_attn.qkv", "self_attn.qkv", "self_attn.qkv", "self_attn.projection")
# ViT and what derives from it, today and before transformers 5.
VIT = names("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj")
OLD_VIT = names(
    "attention.attention.query",
    "attention.attention.key",
    "attention.attention.value",
    "attention.output.dense",
)


@dataclass(frozen=True)
class Stack:
    """The blocks of one kind of encoder.

    Attributes:
        path: dotted path of their list below the encoder; "*" stands for every member of a list of lists, from bottom
            to top: "layers.*.blocks".
        names: dotted paths of q, k, v and out below a block; one for q, k and v where one linear makes them.
    """

    path: str
    names: Mapping[str, str]

    def lists(self, model: Any, root: str) -> list[str]:
        """Dotted paths in the model of the lists of blocks; [] where they are not there."""
        found = [root]
        for name in self.path.split("."):
            if name == "*":
                found = [f"{path}.{index}" for path in found for index in range(len(descend(model, path)))]
            else:
                found = [f"{path}.{name}".lstrip(".") for path in found if hasattr(descend(model, path), name)]
        return [path for path in found if isinstance(descend(model, path), nn.ModuleList)]

    def blocks(self, model: Any, root: str) -> Iterator[tuple[str, nn.Module]]:
        """(dotted path in the model, block) from bottom to top."""
        for path in self.lists(model, root):
            for index, block in enumerate(descend(model, path)):
                yield f"{path}.{index}", block

    def fits(self, model: Any, root: str) -> bool:
        """Whether blocks with these names stand there."""
        first = next(self.blocks(model, root), None)
        return first is not None and located(first[1], self.names["q"])[1] is not None

    def slots(self, modality: str, model: Any, root: str) -> list[Slot]:
        """One slot per block; raises ValueError for a block that holds no such attention."""
        layout = (Fused if self.names["q"] == self.names["k"] else Separate)(self.names)
        return layout.slots(modality, self.blocks(model, root))


BERT_LIKE = (Stack("encoder.layer", BERT),)
CLIP_LIKE = tuple(Stack(f"{inner}encoder.layers", CLIP) for inner in ("", "vision_model.", "text_model."))
VIT_LIKE = (Stack("layers", VIT), Stack("encoder.layer", VIT), Stack("encoder.layer", OLD_VIT))
# By `model_type`, each with the forms that releases of transformers gave it.
STACKS: dict[str, tuple[Stack, ...]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), BERT_LIKE),
    **dict.fromkeys(("align_text_model", "chinese_clip_text_model", "clap_text_model", "blip_text_model"), BERT_LIKE),
    **dict.fromkeys(("t5", "mt5", "umt5"), (Stack("block", T5),)),
    "m2m_100": (Stack("layers", CLIP),),
    "altclip_text_model": (Stack("roberta.encoder.layers", BERT), Stack("roberta.encoder.layer", BERT)),
    **dict.fromkeys(("siglip2_vision_model", "xclip_vision_model"), CLIP_LIKE),
    **dict.fromkeys(("clip_vision_model", "metaclip_2_vision_model", "siglip_vision_model"), CLIP_LIKE),
    **dict.fromkeys(("clip_text_model", "metaclip_2_text_model", "siglip_text_model"), CLIP_LIKE),
    **dict.fromkeys(("flava_text_model", "flava_image_model"), (Stack("encoder.layer", OLD_VIT),)),
    "blip_vision_model": (Stack("encoder.layers", BLIP),),
    "clap_audio_model": (Stack("audio_encoder.layers.*.blocks", BERT),),
    "groupvit_vision_model": (Stack("encoder.stages.*.layers", CLIP),),
    **dict.fromkeys(("vit", "dinov2", "dinov2_with_registers", "deit"), VIT_LIKE),
}


def config_of(encoder: Any) -> Any:
    """The configuration of an encoder, None where it has none."""
    return getattr(encoder, "config", None)


def stack_of(model: Any, root: str) -> Stack:
    """The stack of the encoder at a dotted path; raises ValueError, which names it, for one without a known one."""
    encoder = descend(model, root)
    types = model_types(config_of(encoder))
    known = [stack for name in types for stack in STACKS.get(name, ())]
    for stack in known:
        if stack.fits(model, root):
            return stack
    where = f"the {type(encoder).__name__} at {root}" if root else f"a {type(encoder).__name__}"
    if known:
        raise ValueError(f"model: looked for the blocks of {where} at {known[0].path}, found none with q, k, v")
    raise ValueError(
        f"model: got {where} of model_type {types[0] if types else None!r}, whose attention is not known, expected one "
        f"of {', '.join(map(repr, STACKS))}"
    )
