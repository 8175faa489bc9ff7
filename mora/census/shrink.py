"""open_clip's configurations with two blocks per tower and few channels, on random weights: nothing is fetched."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn

WIDTH, TEXT_WIDTH, HEADS, EMBEDDING = 64, 48, 4, 32
VOCABULARY = 50000  # enough for the end token of CLIP's, and more than CLIP's where the configuration says so
# Sizes of timm's models by the beginning of their names; of the others, that they are transformers of one width.
STAGES: dict[str, dict[str, Any]] = {
    "convnext": {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 64)},
    "fastvit_mci3": {"layers": (1, 1, 1, 1, 1), "embed_dims": (16, 32, 32, 64, 64)},
    "fastvit_mci4": {"layers": (1, 1, 1, 1, 1), "embed_dims": (16, 32, 32, 64, 64)},
    "fastvit": {"layers": (1, 1, 1, 2), "embed_dims": (16, 32, 32, 64)},
    "swin": {"depths": (1, 1, 1, 2), "embed_dim": 16, "num_heads": (1, 2, 4, 4), "img_size": 64, "window_size": 2},
    "vitamin": {"depth": 2, "embed_dim": WIDTH, "num_heads": HEADS, "img_size": 64},
    "vit_base_mci": {"depth": 2, "img_size": 64},
}
# What `transformers` says of the text encoders, by a configuration class of its own.
ENCODERS: dict[str, str] = {
    "xlm-roberta": "XLMRobertaConfig",
    "roberta": "RobertaConfig",
    "mt5": "MT5Config",
    "nllb": "M2M100Config",
    "bert": "BertConfig",
}
ENCODER: dict[str, dict[str, Any]] = {
    "M2M100Config": {
        "d_model": TEXT_WIDTH,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS,
        "encoder_ffn_dim": 2 * TEXT_WIDTH,
        "decoder_ffn_dim": 2 * TEXT_WIDTH,
        "max_position_embeddings": 64,
    },
    "MT5Config": {"d_model": TEXT_WIDTH, "d_kv": 12, "d_ff": 96, "num_layers": 2, "num_heads": HEADS},
}
BERT = {
    "hidden_size": TEXT_WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": 2 * TEXT_WIDTH,
    "max_position_embeddings": 66,
}


def built(name: str) -> nn.Module:
    """A shrunk model of a configuration, in float64 and eval mode, every weight drawn from a fixed seed."""
    import open_clip

    config = shrunk(open_clip.get_model_config(name))
    own = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP if own else open_clip.CLIP
    torch.manual_seed(0)
    with (
        small_timm(timm_sizes(config["vision_cfg"]) if "timm_model_name" in config["vision_cfg"] else {}),
        small_encoders(),
    ):
        model: nn.Module = kind(**config)
    start(model)
    return model.double().eval()


@torch.no_grad()
def start(model: nn.Module) -> None:
    """Draw what a model leaves as the memory was, and move what starts at next to nothing: biases and scales."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = 0.1 * torch.randn(parameter.shape, generator=generator)
        if not bool(parameter.isfinite().all()) or bool((parameter.abs() > 1e6).any()):
            parameter.copy_(noise)
        elif sum(size > 1 for size in parameter.shape) < 2:
            parameter.add_(noise)


def shrunk(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with two blocks per tower and narrow ones."""
    config = copy.deepcopy(config)
    image, text = config["vision_cfg"], config["text_cfg"]
    config["embed_dim"] = WIDTH if image.get("timm_proj") == "none" else EMBEDDING
    if "timm_model_name" in image:
        image |= {"timm_model_pretrained": False, "timm_drop": 0.0, "timm_drop_path": 0.0}  # nothing drawn at random
        image["image_size"] = timm_image(image)
    elif isinstance(image["layers"], list):
        image |= {"layers": [1, 1, 1, 1], "width": 8, "head_width": 32, "image_size": 64}
    else:
        image |= {"layers": 2, "width": WIDTH, "head_width": WIDTH // HEADS, "image_size": 2 * image["patch_size"]}
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False
    else:
        text |= {"layers": 2, "width": TEXT_WIDTH, "heads": HEADS}
        text["vocab_size"] = min(text.get("vocab_size", VOCABULARY), VOCABULARY)
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= {"layers": 1, "width": EMBEDDING, "heads": HEADS}
    return config


def timm_sizes(image: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `timm.create_model` that shrink an image tower."""
    name = image.get("timm_model_name", "")
    for beginning, sizes in STAGES.items():
        if name.startswith(beginning):
            return sizes | ({"embed_cfg": convolutions()} if beginning == "vitamin" else {})
    return {"depth": 2, "embed_dim": WIDTH, "num_heads": HEADS, "img_size": timm_image(image)}


def convolutions() -> Any:
    """The stages below a shrunk ViTamin's blocks."""
    vitamin: Any = import_module("timm.models.vitamin")
    norms = vitamin.VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6)
    widths = (WIDTH // 4, WIDTH // 2, WIDTH)
    return vitamin.VitCfg(embed_dim=widths, depths=(1, 1, 1), stem_width=widths[0], conv_cfg=norms, head_type="1d")


def timm_image(image: dict[str, Any]) -> int:
    """The edge of the images of a shrunk tower of timm's: two patches, or what its stages can divide."""
    patch = re.search(r"patch(\d+)", image["timm_model_name"])
    staged = any(image["timm_model_name"].startswith(beginning) for beginning in STAGES)
    return 64 if staged or patch is None else 2 * int(patch[1])


@contextmanager
def small_timm(sizes: dict[str, Any]) -> Iterator[None]:
    """Within the block open_clip asks timm for models of other sizes."""
    timm: Any = import_module("timm")
    create = timm.create_model

    def smaller(name: str, *args: Any, **kwargs: Any) -> Any:
        return create(name, *args, **kwargs, **sizes)

    timm.create_model = smaller
    try:
        yield
    finally:
        timm.create_model = create


@contextmanager
def small_encoders() -> Iterator[None]:
    """Within the block the configurations of text encoders are made here, small, instead of being fetched."""
    hf_model: Any = import_module("open_clip.hf_model")
    known = hf_model.AutoConfig
    hf_model.AutoConfig = Encoders
    try:
        yield
    finally:
        hf_model.AutoConfig = known


class Encoders:
    """What open_clip asks of `transformers.AutoConfig`."""

    @staticmethod
    def from_pretrained(name: str) -> Any:
        """A small configuration of the kind that a name stands for; KeyError for a name that is not known."""
        import transformers

        for part, kind in ENCODERS.items():
            if part in name:
                config = getattr(transformers, kind)(vocab_size=1000, **ENCODER.get(kind, BERT))
                for key in [key for key in vars(config) if "drop" in key]:
                    setattr(config, key, 0.0)
                return config
        raise KeyError(name)
