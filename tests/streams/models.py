"""Tiny models of one stream on random weights, and their inputs."""

import torch
import transformers

VOCABULARY, IMAGE_TOKEN, WIDTH, SIDE = 60, 59, 32, 16
COMMON = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
PIXELS = {"image_size": SIDE, "patch_size": 8}


def vilt(kind="ViltModel", **options):
    """A `ViltModel`, or one of its heads: 4 patches and a class token behind the text."""
    torch.manual_seed(0)
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": 12, "initializer_range": 0.2}
    config = transformers.ViltConfig(**COMMON, **NO_DROPOUT, **PIXELS, **text, **options)
    return getattr(transformers, kind)(config).eval()


def llava(kind="LlavaForConditionalGeneration"):
    """LLaVA of a CLIP and a Llama with grouped-query attention: k and v are half as wide as q."""
    torch.manual_seed(0)
    vision = {**COMMON, **PIXELS, "model_type": "clip_vision_model", "hidden_size": 16}
    decoder = {**COMMON, "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 64}
    decoder |= {
        "model_type": "llama",
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = transformers.LlavaConfig(vision_config=vision, text_config=decoder, image_token_index=IMAGE_TOKEN)
    return getattr(transformers, kind)(config).eval()


MODELS = {"vilt": vilt, "llava": llava}


def pixels(batch=2):
    return torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def tokens(places=(1, 4), length=11):
    """Texts of a LLaVA, each with the 4 tokens of its image from a place of its own on; None: no image."""
    ids = torch.randint(3, IMAGE_TOKEN, (len(places), length), generator=torch.Generator().manual_seed(2))
    for row, place in enumerate(places):
        if place is not None:
            ids[row, place : place + 4] = IMAGE_TOKEN
    return ids


def inputs_of(name, places=(1, 4)):
    """(arguments of a forward call, the modality of every token [[...], ...])."""
    if name == "vilt":
        return {"input_ids": tokens((None, None), 7), "pixel_values": pixels()}, [["text"] * 7 + ["image"] * 5] * 2
    ids, images = tokens(places), sum(place is not None for place in places)
    kinds = [["image" if token == IMAGE_TOKEN else "text" for token in row] for row in ids.tolist()]
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return given | ({"pixel_values": pixels(images)} if images else {}), kinds


def run(model, given):
    """What a model computes; ViLT puts patches in an order drawn anew."""
    torch.manual_seed(5)
    like = next(model.parameters())
    output = model(**{name: value.to(like) if value.is_floating_point() else value for name, value in given.items()})
    return output.logits if hasattr(output, "logits") else output.last_hidden_state
