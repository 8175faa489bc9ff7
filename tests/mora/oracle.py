"""The slow model: it keeps nothing and computes equation (1) in float64 each time it is asked."""

import copy

import open_clip
import torch
import transformers

import mora
from mora_kernels import effective_weight
from tests.mora.models import CONTEXT, IMAGE, VOCABULARY, embed

LAYERS, WIDTH, EMBEDDING = 2, 32, 24


def small_open_clip():
    """Two blocks a tower, one width in both."""
    torch.manual_seed(0)
    return open_clip.CLIP(
        embed_dim=EMBEDDING,
        quick_gelu=True,
        vision_cfg={"layers": LAYERS, "width": WIDTH, "head_width": 16, "patch_size": 16, "image_size": IMAGE},
        text_cfg={
            "layers": LAYERS,
            "width": WIDTH,
            "heads": 2,
            "vocab_size": VOCABULARY,
            "context_length": CONTEXT,
        },
    ).eval()


def small_hugging_face():
    """The same sizes."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "projection_dim": EMBEDDING,
    }
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT}
    special = {"bos_token_id": VOCABULARY - 2, "eos_token_id": VOCABULARY - 1}
    config = transformers.CLIPConfig(
        text_config={**sizes, **text, **special},
        vision_config={**sizes, "image_size": IMAGE, "patch_size": 16},
        projection_dim=EMBEDDING,
    )
    return transformers.CLIPModel(config).eval()


SMALL = {"open_clip": small_open_clip, "hugging_face": small_hugging_face}
PRISTINE = {family: make() for family, make in SMALL.items()}


def frozen_weight(model, modality, layer, target):
    """The [d, d] weight of one projection of an untouched model, a view that can be written."""
    if hasattr(model, "encode_image"):
        tower = model.visual.transformer if modality == "image" else model.transformer
        attention = tower.resblocks[layer].attn
        if target == "out":
            return attention.out_proj.weight
        return attention.in_proj_weight.view(3, WIDTH, WIDTH)["qkv".index(target)]
    tower = model.vision_model if modality == "image" else model.text_model
    return getattr(tower.encoder.layers[layer].self_attn, f"{target}_proj").weight


class Oracle:
    """What one model has to compute: base weights, adapters and head are given, W_eff is made anew at every call."""

    def __init__(self, family):
        self.model = copy.deepcopy(PRISTINE[family]).double()

    @torch.no_grad()
    def load(self, base, adapters=None, config=None):
        """Take base weights by name, and fold adapters by equation (1) where they are given."""
        state = self.model.state_dict()
        for name, tensor in base.items():
            state[name].copy_(tensor)
        if adapters is None:
            return self
        wide = {name: tensor.double() for name, tensor in adapters.items()}
        first = LAYERS - config.last_layers
        for modality, other in (("image", "text"), ("text", "image")):
            for layer in range(first, LAYERS):
                common = [wide[f"common.{layer - first}.{name}"] for name in (modality, other)]
                for target in config.targets:
                    part = [
                        wide.get(f"{modality}.{layer}.{target}.{kind}")
                        for kind in ("specific_a", "specific_b", "common_magnitude", "specific_magnitude")
                    ]
                    weight = frozen_weight(self.model, modality, layer, target)
                    gram = None if config.variant == "no-gram" else [common[1]]
                    made = effective_weight(weight.clone(), common[0], gram, *part, config.alpha, backend="reference")
                    weight.copy_(made)
        return self

    @torch.no_grad()
    def outputs(self, images, texts, classifier, image_present, text_present):
        """Image embeddings, text embeddings and the logits of rows that lack one modality, all float64."""
        white, empty = classifier.missing_image.double()[None], classifier.missing_text[None]
        image, text = embed(self.model, torch.cat([images.double(), white]), torch.cat([texts, empty]))
        rows = (
            torch.where(image_present[:, None], image[:-1], image[-1:]),
            torch.where(text_present[:, None], text[:-1], text[-1:]),
        )
        logits = torch.cat(rows, dim=1) @ classifier.head.weight.double().T + classifier.head.bias.double()
        return {"image": image[:-1], "text": text[:-1], "logits": logits}


def adapters_now(model):
    """The adapters' present values, copied; None where there are none."""
    if not mora.adapters.record.is_patched(model):
        return None
    return {name: tensor.detach().clone() for name, tensor in mora.adapter_parameters(model)}
