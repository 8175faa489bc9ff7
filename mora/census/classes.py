"""Classes of transformers with two blocks per tower, few channels and random weights: nothing is fetched."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from mora.census.decoders import DECODERS

IMAGE, VOCABULARY, WIDTH = 32, 60, 32
BERT = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
VIT = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": IMAGE,
    "patch_size": 8,
}
TEXT = {**VIT, "vocab_size": VOCABULARY, "max_position_embeddings": 16, "bos_token_id": 58, "eos_token_id": 59}
SIGLIP_TEXT = {**TEXT, "projection_size": WIDTH, "pad_token_id": 1}
ROBERTA = {**BERT, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
BLIP_TEXT = {**BERT, "encoder_hidden_size": WIDTH, "bos_token_id": 58, "sep_token_id": 59}
SWIN = {
    "spec_size": 32,
    "num_mel_bins": 8,
    "window_size": 4,
    "depths": [1, 2],
    "num_attention_heads": [2, 4],
    "patch_embeds_hidden_size": 16,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "hidden_dropout_prob": 0.0,
}
GROUPS = {**VIT, "depths": [1, 1], "num_group_tokens": [4, 0], "num_output_groups": [4, 4]}
VIDEO = {"num_frames": 2, "mit_hidden_size": 16, "mit_intermediate_size": 32, "mit_num_attention_heads": 4}
WIDE = {"hidden_size": 64, "num_hidden_layers": 2, "image_size": IMAGE, "patch_size": 8}
CONVOLUTIONS = {"image_size": IMAGE, "width_coefficient": 0.2, "depth_coefficient": 0.3, "depthwise_padding": []}


def two_towers(kind: str, image: dict[str, Any], text: dict[str, Any], **options: Any) -> nn.Module:
    """A model of a class of two configurations; `key` names that of the tower beside text."""
    import transformers

    torch.manual_seed(0)
    key = options.pop("key", "vision_config")
    config = getattr(transformers, f"{kind}Config")(**{key: image, "text_config": text}, **options)
    model: nn.Module = getattr(transformers, f"{kind}Model")(config)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm1d):  # of GroupViT, as training leaves it
            nn.init.normal_(part.running_mean)  # type: ignore[arg-type]
        if isinstance(part, nn.Conv2d) and kind == "Align":  # as it is made, numbers vanish on their way up
            nn.init.kaiming_normal_(part.weight)
    return model.eval()


def dual(image: str, sees: dict[str, Any], text: str, reads: dict[str, Any]) -> nn.Module:
    """A `VisionTextDualEncoderModel` of two encoders, by the names of their configurations."""
    import transformers

    torch.manual_seed(0)
    parts = (getattr(transformers, f"{kind}Config")(**given) for kind, given in ((image, sees), (text, reads)))
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(*parts, projection_dim=16)
    model: nn.Module = transformers.VisionTextDualEncoderModel(config)
    return model.eval()


def single(name: str, kind: str, given: dict[str, Any]) -> nn.Module:
    """One encoder."""
    import transformers

    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, name)(getattr(transformers, f"{kind}Config")(**given))
    return model.eval()


PAIRS: dict[str, Callable[[], nn.Module]] = {
    "CLIPModel": partial(two_towers, "CLIP", VIT, TEXT, projection_dim=16),
    "MetaClip2Model": partial(two_towers, "MetaClip2", VIT, TEXT, projection_dim=16),
    "CLIPSegModel": partial(two_towers, "CLIPSeg", VIT, TEXT, projection_dim=16),
    "OwlViTModel": partial(two_towers, "OwlViT", VIT, TEXT, projection_dim=16),
    "Owlv2Model": partial(two_towers, "Owlv2", VIT, TEXT, projection_dim=16),
    "SiglipModel": partial(two_towers, "Siglip", VIT, SIGLIP_TEXT),
    "Siglip2Model": partial(two_towers, "Siglip2", {**VIT, "num_patches": 16}, {**SIGLIP_TEXT, "pad_token_id": 0}),
    "AltCLIPModel": partial(two_towers, "AltCLIP", VIT, {**ROBERTA, "project_dim": 24}, projection_dim=16),
    "BlipModel": partial(two_towers, "Blip", {**VIT, "initializer_range": 0.02}, BLIP_TEXT, projection_dim=16),
    "ChineseCLIPModel": partial(two_towers, "ChineseCLIP", VIT, BERT, projection_dim=16),
    "FlavaModel": partial(
        two_towers,
        "Flava",
        VIT,
        BERT,
        key="image_config",
        projection_dim=16,
        multimodal_config={**VIT},
        image_codebook_config={},
    ),
    "GroupViTModel": partial(two_towers, "GroupViT", GROUPS, TEXT, projection_dim=16, projection_intermediate_dim=24),
    "XCLIPModel": partial(two_towers, "XCLIP", {**VIT, **VIDEO}, TEXT, projection_dim=16),
    "ClapModel": partial(two_towers, "Clap", SWIN, ROBERTA, key="audio_config", projection_dim=16),
    "ClapModel with fusion": partial(
        two_towers, "Clap", {**SWIN, "enable_fusion": True}, ROBERTA, key="audio_config", projection_dim=16
    ),
    "VisionTextDualEncoderModel of ViT and BERT": partial(dual, "ViT", VIT, "Bert", BERT),
    "VisionTextDualEncoderModel of DINOv2 and RoBERTa": partial(dual, "Dinov2", VIT, "Roberta", ROBERTA),
    "VisionTextDualEncoderModel of CLIP and BERT": partial(dual, "CLIPVision", VIT, "Bert", BERT),
    "VisionTextDualEncoderModel of SigLIP and XLM-R": partial(dual, "SiglipVision", VIT, "XLMRoberta", ROBERTA),
    "VisionTextDualEncoderModel of DINOv2 and CLIP": partial(dual, "Dinov2", VIT, "CLIPText", TEXT),
}
ALIGN = partial(two_towers, "Align", CONVOLUTIONS, BERT, projection_dim=64)
SINGLE: dict[str, Callable[[], nn.Module]] = {
    name: partial(single, name, kind, given)
    for name, kind, given in (
        ("CLIPVisionModel", "CLIPVision", VIT),
        ("CLIPVisionModelWithProjection", "CLIPVision", {**VIT, "projection_dim": 16}),
        ("CLIPTextModel", "CLIPText", TEXT),
        ("CLIPTextModelWithProjection", "CLIPText", {**TEXT, "projection_dim": 16}),
        ("SiglipVisionModel", "SiglipVision", VIT),
        ("SiglipTextModel", "SiglipText", {**TEXT, "projection_size": 16, "pad_token_id": 1}),
        ("ViTModel", "ViT", VIT),
        ("Dinov2Model", "Dinov2", VIT),
        ("BertModel", "Bert", BERT),
        ("RobertaModel", "Roberta", ROBERTA),
    )
}
# Models of one stream: text and image tokens go through the same blocks.
STREAMS: dict[str, Callable[[], nn.Module]] = {
    "ViltModel": partial(single, "ViltModel", "Vilt", {**VIT, **BERT, "initializer_range": 0.2}),
}
# Models whose towers read each other: no embedding of one modality alone.
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "BridgeTowerModel": partial(
        two_towers, "BridgeTower", WIDE, {**ROBERTA, **WIDE}, num_hidden_layers=2, hidden_size=64, num_attention_heads=4
    ),
}
CLASSES: dict[str, Callable[[], nn.Module]] = {**PAIRS, "AlignModel": ALIGN, **SINGLE, **STREAMS, **DECODERS, **OTHERS}
