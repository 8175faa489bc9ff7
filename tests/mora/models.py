"""Small CLIPs of every kind that can be adapted, with the same weights where asked, and their inputs.

Tests of verbs, checkpoints, training, savings and exports are parametrised over `MODELS`: what is there is tested by
all of them. `KIN` are models that share every line of the library with one of `MODELS` under other names; one test
leads each through the whole life of an adapter. All have the same sizes.
"""

import json
from functools import partial
from pathlib import Path

import open_clip
import torch
import transformers
from safetensors import safe_open

from mora.towers import towers_of

GOLDEN = Path(__file__).parents[1] / "golden"
VOCABULARY, CONTEXT, IMAGE = 100, 16, 32


def open_clip_model(image_layers=4, text_layers=4, seed=0, **text):
    """A tiny open_clip CLIP: image width 64, text width 48."""
    torch.manual_seed(seed)
    return open_clip.CLIP(
        embed_dim=32,
        quick_gelu=True,
        vision_cfg={"layers": image_layers, "width": 64, "head_width": 16, "patch_size": 8, "image_size": IMAGE},
        text_cfg={
            "layers": text_layers,
            "width": 48,
            "heads": 4,
            "vocab_size": VOCABULARY,
            "context_length": CONTEXT,
            **text,
        },
    ).eval()


def golden_clip(name):
    """(Hugging Face CLIP with the base weights, the file's settings, its other tensors) of a golden file."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    clip = config.get("clip") or json.loads(safe_metadata("official_qv_rank4"))["clip"]
    model = transformers.CLIPModel(transformers.CLIPConfig(**clip)).eval()
    base = {key.removeprefix("base."): tensor for key, tensor in tensors.items() if key.startswith("base.")}
    model.load_state_dict(base)
    return model, config, tensors


def safe_metadata(name):
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return file.metadata()["config"]


def hugging_face_model(seed=0):
    """A tiny Hugging Face CLIP of the same sizes."""
    torch.manual_seed(seed)
    config = json.loads(safe_metadata("official_qv_rank4"))["clip"]
    return transformers.CLIPModel(transformers.CLIPConfig(**config)).eval()


VISION = {"layers": 4, "width": 64, "head_width": 16, "patch_size": 8, "image_size": IMAGE}
TEXT = {"layers": 4, "width": 48, "heads": 4, "vocab_size": VOCABULARY, "context_length": CONTEXT}


def custom_text_model(seed=0):
    """open_clip's `CustomTextCLIP`: a text tower of its own, on `nn.MultiheadAttention`."""
    torch.manual_seed(seed)
    return open_clip.CustomTextCLIP(embed_dim=32, vision_cfg=VISION, text_cfg=TEXT).eval()


def own_blocks_model(seed=0):
    """The same on open_clip's own `Attention`."""
    torch.manual_seed(seed)
    vision, text = ({**sizes, "qk_norm": True} for sizes in (VISION, TEXT))
    return open_clip.CustomTextCLIP(embed_dim=32, vision_cfg=vision, text_cfg=text).eval()


HF_VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": IMAGE,
    "patch_size": 8,
}
HF_TEXT = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": VOCABULARY - 2,
    "eos_token_id": VOCABULARY - 1,
}


def transformers_model(kind, seed=0, **text):
    """A tiny model of a class of transformers that has CLIP's configuration, for example "MetaClip2"."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")
    made = config(vision_config=HF_VISION, text_config={**HF_TEXT, **text}, projection_dim=32)
    return getattr(transformers, f"{kind}Model")(made).eval()


def siglip_model(seed=0):
    """A tiny `SiglipModel`; SigLIP has no projection of images, so embeddings are as wide as its image tower."""
    torch.manual_seed(seed)
    text = {**HF_TEXT, "projection_size": HF_VISION["hidden_size"], "pad_token_id": 1, "eos_token_id": 1}
    return transformers.SiglipModel(transformers.SiglipConfig(vision_config=HF_VISION, text_config=text)).eval()


def dual_encoder_model(seed=0, siglip=False):
    """A `VisionTextDualEncoderModel` of a CLIP's two towers, or of SigLIP's image tower and CLIP's text tower."""
    torch.manual_seed(seed)
    kind = transformers.SiglipVisionConfig if siglip else transformers.CLIPVisionConfig
    towers = kind(**HF_VISION), transformers.CLIPTextConfig(**HF_TEXT)
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(*towers, projection_dim=32)
    return transformers.VisionTextDualEncoderModel(config).eval()


MODELS = {
    "open_clip": open_clip_model,
    "own_blocks": own_blocks_model,
    "hugging_face": hugging_face_model,
    "metaclip_2": partial(transformers_model, "MetaClip2", bos_token_id=0, eos_token_id=2, pad_token_id=1),
    "siglip": siglip_model,
    "dual_encoder": dual_encoder_model,
}
# For tests of what depends on how projections are put in and no more: kernels, compilation.
SITES = {name: MODELS[name] for name in ("open_clip", "hugging_face")}
KIN = {
    "custom_text": custom_text_model,
    "clip_legacy": partial(transformers_model, "CLIP", bos_token_id=0, eos_token_id=2, pad_token_id=1),
    "clip_end_inside": partial(transformers_model, "CLIP", eos_token_id=50),
    "clipseg": partial(transformers_model, "CLIPSeg"),
    "owlvit": partial(transformers_model, "OwlViT"),
    "owlv2": partial(transformers_model, "Owlv2"),
    "siglip_image": partial(dual_encoder_model, siglip=True),
}


def images(batch=3, seed=1):
    return torch.randn(batch, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(seed))


def tokens(batch=3, seed=2):
    """Whole texts: they begin with 98 and end with 2, where `metaclip_2` is pooled, and 99, where the others are."""
    text = torch.randint(3, VOCABULARY - 2, (batch, CONTEXT), generator=torch.Generator().manual_seed(seed))
    text[:, 0], text[:, -2], text[:, -1] = VOCABULARY - 2, 2, VOCABULARY - 1
    return text


def short_tokens(ends, seed=2, padding=0):
    """Texts that begin and end alike, the last token of each at a place of its own, then padding."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.full((len(ends), CONTEXT), padding)
    for row, end in enumerate(ends):
        text[row, 1 : end - 1] = torch.randint(3, VOCABULARY - 2, (end - 2,), generator=generator)
        text[row, 0], text[row, end - 1], text[row, end] = VOCABULARY - 2, 2, VOCABULARY - 1
    return text


def attention_of(model, modality, layer):
    """The attention module of one block."""
    return towers_of(model)[modality].slots(model)[layer].attention


def embed(model, image=None, text=None):
    """(image embedding, text embedding), un-normalised, of either family."""
    image, text = images() if image is None else image, tokens() if text is None else text
    if hasattr(model, "encode_image"):
        return model.encode_image(image), model.encode_text(text)
    outputs = model.get_image_features(pixel_values=image), model.get_text_features(input_ids=text)
    return tuple(getattr(output, "pooler_output", output) for output in outputs)


BLOCK = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def open_clip_twin(model):
    """An open_clip CLIP with the weights of a tiny Hugging Face one."""
    source, vision, text = model.state_dict(), model.config.vision_config, model.config.text_config
    twin = open_clip.CLIP(
        embed_dim=model.config.projection_dim,
        quick_gelu=True,
        vision_cfg={
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            "patch_size": vision.patch_size,
            "image_size": vision.image_size,
        },
        text_cfg={
            "layers": text.num_hidden_layers,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
            "vocab_size": text.vocab_size,
            "context_length": text.max_position_embeddings,
        },
    ).eval()
    target = {
        "logit_scale": source["logit_scale"],
        "token_embedding.weight": source["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": source["text_model.embeddings.position_embedding.weight"],
        "text_projection": source["text_projection.weight"].T,
        "ln_final.weight": source["text_model.final_layer_norm.weight"],
        "ln_final.bias": source["text_model.final_layer_norm.bias"],
        "visual.class_embedding": source["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": source["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": source["vision_model.embeddings.patch_embedding.weight"],
        "visual.proj": source["visual_projection.weight"].T,
    }
    for name in ("weight", "bias"):
        target[f"visual.ln_pre.{name}"] = source[f"vision_model.pre_layrnorm.{name}"]
        target[f"visual.ln_post.{name}"] = source[f"vision_model.post_layernorm.{name}"]
        for theirs, ours in (("vision_model", "visual.transformer"), ("text_model", "transformer")):
            for layer in range(4):
                old, new = f"{theirs}.encoder.layers.{layer}", f"{ours}.resblocks.{layer}"
                for old_name, new_name in BLOCK.items():
                    target[f"{new}.{new_name}.{name}"] = source[f"{old}.{old_name}.{name}"]
                parts = [source[f"{old}.self_attn.{target_name}_proj.{name}"] for target_name in "qkv"]
                target[f"{new}.attn.in_proj_{name}"] = torch.cat(parts)
                target[f"{new}.attn.out_proj.{name}"] = source[f"{old}.self_attn.out_proj.{name}"]
    twin.load_state_dict(target)
    return twin


def randomise(model, seed=3):
    """Move every adapter away from its start, so that a swapped or forgotten one shows."""
    import mora

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in mora.adapter_parameters(model):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model
