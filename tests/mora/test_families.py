"""Which models are adapted: all of the library works on them, or `patch` refuses them by name."""

import importlib
import json
import re
from pathlib import Path

import open_clip
import pytest
import torch
import transformers
from torch import nn

import mora
from mora.towers import towers_of
from mora.towers.recipes import RECIPES
from mora_kernels.testing import assert_parity
from tests.mora.models import (
    HF_TEXT,
    HF_VISION,
    KIN,
    MODELS,
    embed,
    images,
    open_clip_model,
    randomise,
    short_tokens,
    siglip_model,
    tokens,
    transformers_model,
)

TABLE = {torch.float32: 2e-5, torch.float64: 1e-10}
EVERY = {**MODELS, **KIN}
TEXTS = short_tokens((3, 9, 15), padding=1)


@pytest.mark.parametrize("name", EVERY)
def test_the_whole_life_of_an_adapter(name, tmp_path):
    """Identity start, proof, gradients, save and load, savings, merge, unpatch: whatever the model."""
    base = EVERY[name]().double()
    image, text = images().double(), towers_of(base)["text"].random(base, 3, torch.Generator().manual_seed(0))
    weights = {n: t.clone() for n, t in base.state_dict().items()}
    with torch.no_grad():
        plain = embed(base, image, text)
        identity = embed(mora.patch(EVERY[name]().double(), init="identity").eval(), image, text)
    model = mora.verify(mora.patch(base, dropout=0.0, targets=("q", "k", "v", "out")))
    randomise(model)
    adapted = embed(model, image, text)
    sum(embedding.square().sum() for embedding in adapted).backward()
    dead = [n for n, p in mora.adapter_parameters(model) if p.grad is None or not bool(p.grad.any())]
    assert not dead
    for modality, one, two, other in zip(("image", "text"), plain, identity, adapted, strict=True):
        assert_parity(modality, two, one, TABLE)
        assert not torch.allclose(other, one)
        assert not torch.allclose(one[0], one[1])

    folder = mora.save_adapter(model, tmp_path / "adapter")
    loaded = mora.load_adapter(EVERY[name]().double(), folder)
    saving, nothing = (
        mora.MissingModalityClassifier(loaded, 3, savings=s) for s in (mora.Savings(), mora.Savings.none())
    )
    nothing.head = saving.head
    assert not any("from end to end" in line for line in saving.saved())
    present = torch.tensor([True, False, True]), torch.tensor([True, True, False])
    for mode in (True, False):
        logits = [one.train(mode)(image, text, *present) for one in (saving, nothing)]
        assert_parity("logits", *logits, TABLE)
    with torch.no_grad():
        merged = embed(mora.merge(loaded), image, text)
    for modality, one, other in zip(("image", "text"), merged, adapted, strict=True):
        assert_parity(modality, one, other.detach(), TABLE)
    assert all(torch.equal(t, weights[n]) for n, t in mora.unpatch(model).state_dict().items())


def tiny(kind, vision=None, text=None, **options):
    config = getattr(transformers, f"{kind}Config")(
        vision_config={**HF_VISION, **(vision or {})}, text_config={**HF_TEXT, **(text or {})}, **options
    )
    return getattr(transformers, f"{kind}Model")(config)


REFUSED = {
    "aimv2": (lambda: tiny("Aimv2"), "its image tower is 'aimv2_vision_model', expected one of 'clip_vision_model'"),
    "unknown": (lambda: nn.Sequential(nn.Linear(2, 2)), "a Sequential with 0, looked for transformers: two encoders"),
    "end token": (lambda: tiny("CLIP", text={"eos_token_id": 49407}), "its eos_token_id is 49407, expected a token of"),
    "end tokens": (lambda: tiny("CLIP", text={"eos_token_id": [98, 99]}), r"its eos_token_id is \[98, 99\], expected"),
    "no end": (lambda: tiny("MetaClip2", text={"eos_token_id": None}), "its eos_token_id is None, expected a token"),
    "no head": (lambda: tiny("Siglip", {"vision_use_head": False}), r"no pooling head \(vision_use_head=False\)"),
    "inside": (
        lambda: transformers.CLIPSegForImageSegmentation(
            transformers.CLIPSegConfig(
                vision_config=HF_VISION, text_config=HF_TEXT, projection_dim=32, extract_layers=[1], reduce_dim=16
            )
        ),
        r"a CLIPSegForImageSegmentation, expected the CLIP itself: pass model\.clip",
    ),
    "in a list": (lambda: nn.Sequential(open_clip_model()), r"pass model\.0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_work_is_refused_before_anything_is_changed(name):
    make, message = REFUSED[name]
    model = make()
    modules, weights = dict(model.named_modules()), {n: t.clone() for n, t in model.state_dict().items()}
    for use in (mora.patch, lambda clip: mora.MissingModalityClassifier(clip, 3)):
        with pytest.raises(ValueError, match=f"(?s)model: got {message}" if message[:2] == "a " else message):
            use(model)
    assert dict(model.named_modules()) == modules and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(tensor, weights[n]) for n, tensor in model.state_dict().items())


# Classes of transformers that hold both towers under CLIP's names, and whether they are known.
KNOWN = {
    **dict.fromkeys(["CLIPModel", "CLIPSegModel", "MetaClip2Model", "OwlViTModel", "Owlv2Model", "SiglipModel"], True),
    **dict.fromkeys(["Siglip2Model", "XCLIPModel", "AltCLIPModel", "ChineseCLIPModel", "GroupViTModel"], True),
    **dict.fromkeys(["AlignModel", "BlipModel", "VisionTextDualEncoderModel"], True),
    **dict.fromkeys(["Aimv2Model", "Tipsv2Model", "VideoPrismClipModel"], False),
}


def test_every_model_of_transformers_with_clip_s_names_was_looked_at():
    """A new one is adapted only once somebody looked at how it embeds."""
    found = {}
    for source in sorted(Path(transformers.models.__file__).parent.glob("*/modeling_*.py")):
        code = source.read_text(encoding="utf-8")
        if "self.vision_model = " not in code or "self.text_model = " not in code:
            continue
        module = importlib.import_module(f"transformers.models.{source.parent.name}.{source.stem}")
        for name in re.findall(r"^class (\w+Model)\(", code, re.MULTILINE):
            config = getattr(getattr(module, name), "config_class", None)
            if not {"text_config", "vision_config"} <= set(getattr(config, "sub_configs", ())):
                continue
            try:
                made = config()
                made.text_config.num_hidden_layers = made.vision_config.num_hidden_layers = 1
                with torch.device("meta"):
                    model = getattr(module, name)(made)
            except (ValueError, TypeError, AttributeError, RuntimeError):
                continue  # a part of a model, or one that has no default: not one with CLIP's names
            if callable(getattr(model, "get_text_features", None)):
                found[name] = any(recipe.matches(model) and not recipe.unsupported(model) for recipe in RECIPES)
    assert found == {name: adapted for name, adapted in KNOWN.items() if hasattr(transformers, name)}


@pytest.mark.parametrize("name", ["hugging_face", "metaclip_2", "siglip"])
def test_attention_may_be_eager(name):
    model = mora.patch(MODELS[name](), dropout=0.0)
    model.set_attn_implementation("eager")
    saving = mora.MissingModalityClassifier(randomise(mora.verify(model)), 3).eval()
    nothing = mora.MissingModalityClassifier(model, 3, savings=mora.Savings.none()).eval()
    nothing.head = saving.head
    assert not any("from end to end" in line for line in saving.saved())
    assert_parity("logits", saving(images(), TEXTS), nothing(images(), TEXTS), TABLE)


class PooledElsewhere(transformers.CLIPModel):
    """A text tower that is pooled at its second token, which nothing in its configuration says."""

    def get_text_features(self, input_ids, **others):
        return self.text_projection(self.text_model(input_ids, **others).last_hidden_state[:, 1])


def test_a_tower_pooled_elsewhere_is_noticed_and_runs_whole():
    """For the substitute alone both agree: its end token is its second."""
    torch.manual_seed(0)
    config = transformers.CLIPConfig(vision_config=HF_VISION, text_config=HF_TEXT, projection_dim=32)
    model = mora.MissingModalityClassifier(mora.patch(PooledElsewhere(config), dropout=0.0), 3).eval()
    assert [line.split(" (")[0] for line in model.saved()[-1:]] == [
        "text: runs from end to end: cut in two it gives another embedding of a random row"
    ]
    nothing = mora.MissingModalityClassifier(model.model, 3, savings=mora.Savings.none()).eval()
    nothing.head = model.head
    assert_parity("logits", model(images(), TEXTS), nothing(images(), TEXTS), TABLE)


def test_the_processor_beside_the_model_says_what_white_is(tmp_path):
    source = MODELS["hugging_face"]()
    source.save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    for settings, expected in [
        ({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.2, 0.1]}, (1.0, 3.0, 7.0)),
        ({"do_normalize": False, "image_mean": [0.5, 0.4, 0.3]}, (1.0, 1.0, 1.0)),
        ({"image_processor": {"image_mean": 0.5, "image_std": 0.25}}, (2.0, 2.0, 2.0)),
        ({"crop_size": 32}, (1.9303, 2.0749, 2.1459)),
    ]:
        path.write_text(json.dumps(settings))
        model = transformers.CLIPModel.from_pretrained(tmp_path)
        white = mora.MissingModalityClassifier(model, 3).missing_image
        torch.testing.assert_close(white[:, 0, 0], torch.tensor(expected), rtol=0, atol=1e-4)
    for wrong in ({"image_mean": [0.5], "image_std": [1, 1, 1]}, {"image_mean": "a", "image_std": 1}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=r"preprocessor_config\.json: got image_mean .*, expected three numbers"):
            mora.MissingModalityClassifier(model, 3)


def test_the_preprocessing_of_open_clip_s_model_says_what_white_is():
    model = open_clip_model()
    open_clip.set_model_preprocess_cfg(model, {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.2, 0.1)})
    expected = torch.tensor([1.0, 3.0, 7.0])
    torch.testing.assert_close(mora.MissingModalityClassifier(model, 3).missing_image[:, 0, 0], expected)
    model.visual.preprocess_cfg = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    assert mora.MissingModalityClassifier(model, 3).missing_image.unique().tolist() == [1.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ({"vocab_size": 32000, "eos_token_id": 49407, "pad_token_id": 1}, [1, 1, 1]),  # SigLIP
        ({"vocab_size": 256000, "eos_token_id": 49407, "pad_token_id": 1}, [1, 0, 0]),  # SigLIP 2
        ({"vocab_size": 100, "eos_token_id": 7, "pad_token_id": 3}, [7, 3, 3]),
    ],
)
def test_the_empty_text_of_siglip(text, expected):
    with torch.device("meta"):
        model = transformers.SiglipModel(
            transformers.SiglipConfig(vision_config=HF_VISION, text_config={**HF_TEXT, **text})
        )
    assert towers_of(model)["text"].substitute(model).tolist() == [*expected, *[expected[-1]] * 13]


def test_clip_s_own_ids_end_a_text_whatever_was_added_to_its_vocabulary():
    config = {**HF_TEXT, "vocab_size": 49500, "bos_token_id": 0, "eos_token_id": 2}
    with torch.device("meta"):
        model = transformers.CLIPModel(transformers.CLIPConfig(text_config=config, vision_config=HF_VISION))
    assert towers_of(model)["text"].substitute(model).tolist()[:3] == [49406, 49407, 49407]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"pool_type": "eos", "eos_id": 7}, "pooled by 'eos', expected tokenizer"),
        ({"pool_type": "last"}, "pooled by 'last', expected tokenizer"),
        ({"vocab_size": 50000}, "of 50000 tokens, more than CLIP's 49408, expected tokenizer"),
    ],
)
def test_open_clip_s_other_tokenizers_are_asked_for(text, message):
    model = mora.verify(mora.patch(open_clip_model(**text)))
    with pytest.raises(ValueError, match=rf"empty_text: got None .*{message}"):
        mora.MissingModalityClassifier(model, 3)


@pytest.mark.parametrize("end", [0, 2, 7])
def test_open_clip_s_texts_may_end_at_any_id(end):
    """As MetaCLIP 2's in open_clip, on the vocabulary of XLM-R."""
    text = tokens().clamp(min=8)
    for row, place in enumerate((3, 9, 15)):
        text[row, place] = end
    clip = mora.patch(open_clip_model(pool_type="eos", eos_id=end), dropout=0.0)
    models = [
        mora.MissingModalityClassifier(clip, 3, empty_text=torch.tensor([9, end] + [1] * 14), savings=savings).eval()
        for savings in (mora.Savings(), mora.Savings.none())
    ]
    models[1].head = models[0].head
    assert models[0].saved()[-1].endswith("last block for the pooled row only, texts trimmed")
    assert_parity("logits", models[0](images(), text), models[1](images(), text), TABLE)


def test_random_texts_end_at_places_of_their_own():
    for name, make in EVERY.items():
        model = make()
        tower = towers_of(model)["text"]
        text = tower.random(model, 5)
        if name != "siglip":
            ends = tower.ends(model, text).tolist()
            assert len(set(ends)) == 5 and all(0 < end < text.shape[1] for end in ends), name
        assert len(set(map(tuple, text.tolist()))) == 5


def test_siglip_embeds_as_wide_as_its_towers():
    model = siglip_model()
    widths = [tower.width(model) for tower in towers_of(model).values()]
    assert widths == [embedding.shape[1] for embedding in embed(model)] == [64, 64]
    clip = transformers_model("CLIP")
    assert towers_of(clip)["image"].size(clip) == (32, 32)
