"""open_clip to Hugging Face: both libraries embed alike, and what cannot be converted is named."""

import open_clip
import pytest
import torch

import mora
from mora.export.conversion import to_hugging_face
from mora_kernels.testing import assert_parity
from tests.mora.models import (
    CONTEXT,
    IMAGE,
    VOCABULARY,
    embed,
    hugging_face_model,
    images,
    open_clip_model,
    open_clip_twin,
    tokens,
)

TABLE = {torch.float32: 1e-6, torch.float64: 1e-12}
VISION = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": IMAGE}
TEXT = {"layers": 2, "width": 32, "heads": 2, "vocab_size": VOCABULARY, "context_length": CONTEXT}


def texts():
    """Ends in the middle and at the very end, padded with zeros as open_clip pads."""
    text = tokens()
    text[1, 5], text[1, 6:] = VOCABULARY - 1, 0
    return text


def same(model, tolerance=TABLE):
    converted = to_hugging_face(model)
    dtype = next(model.parameters()).dtype
    image, text = images().to(dtype), texts()
    with torch.no_grad():
        pairs = zip(embed(converted, image, text), embed(model, image, text), ("image", "text"), strict=True)
        for got, expected, name in pairs:
            assert_parity(name, got, expected, tolerance)
            assert got.dtype == dtype
    assert torch.equal(converted.logit_scale, model.logit_scale.reshape(()))
    return converted


def test_both_libraries_embed_alike():
    same(open_clip_model())


@pytest.mark.parametrize("kind", [open_clip.CLIP, open_clip.CustomTextCLIP])
@pytest.mark.parametrize("quick_gelu", [True, False])
def test_activations_and_classes(kind, quick_gelu):
    torch.manual_seed(0)
    same(kind(embed_dim=24, quick_gelu=quick_gelu, vision_cfg=VISION, text_cfg=TEXT).eval())


def test_there_and_back_is_the_same_weights():
    original = hugging_face_model()
    back = to_hugging_face(open_clip_twin(original)).state_dict()
    for name, tensor in original.state_dict().items():
        assert torch.equal(back[name], tensor), name


def test_the_built_in_clip_and_a_merged_one():
    from mora import tiny

    model, _, tokenizer = tiny.load()
    mora.merge(mora.patch(model, alpha=0.1))
    image, text = torch.randn(2, 3, 64, 64), tokenizer(["a red fox", ""])
    with torch.no_grad():
        for got, expected in zip(embed(to_hugging_face(model), image, text), embed(model, image, text), strict=True):
            assert_parity("embedding", got, expected, {torch.float32: 1e-5})


def test_dtypes():
    same(open_clip_model().double())


@pytest.mark.parametrize(
    ("vision", "text", "options", "message"),
    [
        ({}, {"pool_type": "last"}, {}, "its text tower is pooled by 'last'"),
        ({}, {"no_causal_mask": True}, {}, "its text tower is not causal"),
        ({}, {"proj_bias": True}, {}, "its text projection is missing or has a bias"),
        ({}, {"embed_cls": True}, {}, "its text tower has a class token"),
        ({}, {}, {"init_logit_bias": 0.0}, "it has a logit bias"),
        ({"pool_type": "avg"}, {}, {}, "its image tower is not pooled at the class token"),
        ({"no_ln_pre": True}, {}, {}, "its image tower has no first norm"),
        ({"ls_init_value": 0.1}, {}, {}, "it has layer scales"),
        ({"qk_norm": True, "block_type": "custom"}, {}, {}, "its blocks are .*CustomResidualAttentionBlock"),
        ({"layers": [1, 1, 1, 1]}, {}, {}, "its image tower is a ModifiedResNet"),
    ],
)
def test_what_has_no_place_there_is_named(vision, text, options, message):
    kind = open_clip.CustomTextCLIP if text else open_clip.CLIP
    model = kind(embed_dim=32, vision_cfg={**VISION, **vision}, text_cfg={**TEXT, **text}, **options)
    with pytest.raises(ValueError, match=f"no Hugging Face CLIPModel form: .*{message}"):
        to_hugging_face(model)
