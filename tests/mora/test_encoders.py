"""Towers that are encoders of transformers: within open_clip's models, in its own classes, alone."""

import re

import open_clip
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, processors

import mora
from mora.census.classes import ALIGN, BERT, PAIRS, ROBERTA, SINGLE, SWIN, VOCABULARY, WIDTH, two_towers
from mora.towers import towers_of
from mora.towers.encoders import naflex
from mora_kernels.testing import assert_parity
from tests.mora.models import IMAGE, VISION, randomise

TABLE = {torch.float32: 2e-5, torch.float64: 1e-10}
MT5 = {
    "d_model": WIDTH,
    "d_kv": 8,
    "d_ff": 64,
    "num_heads": 4,
    "num_layers": 2,
    "vocab_size": VOCABULARY,
    "dropout_rate": 0,
}
M2M = {
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 40,
    "encoder_layerdrop": 0.0,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
SEES = {**VISION, "layers": 2, "width": WIDTH, "head_width": 8}
OPEN_CLIP = {
    "roberta": (lambda: transformers.RobertaConfig(**BERT), {}, [0, 2, 1]),
    "xlm_roberta": (lambda: transformers.XLMRobertaConfig(**BERT), {}, [0, 2, 1]),
    "mt5": (lambda: transformers.MT5Config(**MT5), {"hf_pooler_type": "mean_pooler"}, [1, 0, 0]),
    "nllb": (
        lambda: transformers.M2M100Config(**M2M),
        {"hf_pooler_type": "cls_pooler", "hf_proj_type": "linear"},
        None,
    ),
    "bert": (lambda: transformers.BertConfig(**BERT), {"hf_pooler_type": "cls_last_hidden_state_pooler"}, None),
    "coca_roberta": (
        lambda: transformers.RobertaConfig(**BERT),
        {"hf_proj_type": "linear", "output_tokens": True},
        [0, 2, 1],
    ),
}


def open_clip_model(name, folder):
    """An open_clip model whose text tower is made from a configuration in a folder, as its own configurations do."""
    make, text, _ = OPEN_CLIP[name]
    make().save_pretrained(folder)
    torch.manual_seed(0)
    text = {"hf_model_name": str(folder), "hf_model_pretrained": False, "hf_proj_type": "mlp", **text}
    if name.startswith("coca"):
        vision = {**SEES, "output_tokens": True}
        decoder = {"context_length": 40, "vocab_size": VOCABULARY, "width": WIDTH, "heads": 4, "layers": 1}
        model = open_clip.CoCa(16, multimodal_cfg=decoder, text_cfg=text, vision_cfg=vision).eval()
        torch.nn.init.normal_(model.text_decoder.text_projection)  # open_clip leaves it as the memory was, NaN or not
        return model
    return open_clip.CustomTextCLIP(16, vision_cfg=SEES, text_cfg=text).eval()


def lives(make, own, tmp_path, missing=None, training=True, adapt=None):
    """One model through everything; `own(model, inputs)` embeds by its library's own forward, normalised."""
    base = make().double()
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    towers = towers_of(base)
    generator = torch.Generator().manual_seed(0)
    inputs = {name: tower.random(base, 3, generator) for name, tower in towers.items()}
    inputs = {name: given.double() if given.is_floating_point() else given for name, given in inputs.items()}

    def embed(model):
        return [tower.encode(model, inputs[name]) for name, tower in towers.items()]

    with torch.no_grad():
        plain, theirs = embed(base), own(base, inputs)
        identity = embed(mora.patch(make().double(), init="identity", adapt=adapt).eval())
    model = randomise(mora.verify(mora.patch(base, dropout=0.0, targets=("q", "k", "v", "out"), adapt=adapt)))
    adapted = embed(model)
    sum(embedding.square().sum() for embedding in adapted).backward()
    dead = [
        name for name, parameter in mora.adapter_parameters(model) if parameter.grad is None or not parameter.grad.any()
    ]
    assert not dead
    for modality, one, two, other, their in zip(towers, plain, identity, adapted, theirs, strict=True):
        assert one.shape == (3, towers[modality].width(base))
        assert_parity(modality, two, one, TABLE)
        assert_parity(modality, torch.nn.functional.normalize(one, dim=-1), their, TABLE)
        assert torch.allclose(other, one, atol=0) == (adapt is not None and adapt[modality] == "frozen")
        assert not torch.allclose(one[0], one[1], atol=0)
        norms = one.norm(dim=-1)
        assert not torch.allclose(norms, torch.ones_like(norms)), "normalised"

    loaded = mora.load_adapter(make().double(), mora.save_adapter(model, tmp_path / "adapter"))
    buffers = [(buffer, buffer.clone()) for buffer in loaded.buffers()]
    saving, nothing = (
        mora.MissingModalityClassifier(loaded, 3, savings=savings, missing=missing)
        for savings in (None, mora.Savings.none())
    )
    nothing.head = saving.head
    masks = (torch.tensor([True, False, True]), torch.tensor([True, True, False]))
    partly = dict(zip(towers, masks, strict=False)) if len(towers) > 1 else None
    for mode in (True, False) if training else (False,):
        for given, present in ((inputs, partly), *(({name: rows}, None) for name, rows in inputs.items())):
            logits = [one.train(mode)(inputs=given, present=present) for one in (saving, nothing)]
            assert_parity("logits", *logits, TABLE)
    with torch.no_grad():
        for buffer, before in buffers:  # statistics of batches
            buffer.copy_(before)
        for modality, one, other in zip(towers, embed(mora.merge(loaded).eval()), adapted, strict=True):
            assert_parity(modality, one, other.detach(), TABLE)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in mora.unpatch(model).state_dict().items())


def own_open_clip(model, inputs):
    output = model(inputs["image"], inputs["text"])
    if isinstance(output, dict):
        return output["image_features"], output["text_features"]
    return output[:2]


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_open_clip_s_text_tower_may_be_an_encoder_of_transformers(name, tmp_path):
    *_, empty = OPEN_CLIP[name]
    given = {"text": torch.tensor([7, 2])} if empty is None else None
    lives(lambda: open_clip_model(name, tmp_path), own_open_clip, tmp_path, given)
    model = open_clip_model(name, tmp_path)
    tower = towers_of(model)["text"]
    assert tower.kind == "open_clip text of transformers"
    if empty is None:
        with pytest.raises(
            ValueError, match=r"empty_text: got None for a \w+ whose configuration says .*, expected tok"
        ):
            tower.substitute(model)
    else:
        assert tower.substitute(model).tolist()[:3] == empty and len({*tower.substitute(model)[2:].tolist()}) == 1
    padding = (tower.random(model, 4) == tower.padding(model)).sum(dim=1)
    assert len({*padding.tolist()}) == 4


def test_a_text_may_be_longer_than_the_substitute(tmp_path):
    """Which is filled up with padding, that nothing attends to."""
    config = transformers.RobertaConfig(**{**BERT, "max_position_embeddings": 130})
    config.save_pretrained(tmp_path)
    text = {"hf_model_name": str(tmp_path), "hf_model_pretrained": False, "hf_proj_type": "mlp"}
    model = mora.MissingModalityClassifier(open_clip.CustomTextCLIP(16, vision_cfg=SEES, text_cfg=text).eval(), 3)
    images = torch.randn(2, 3, IMAGE, IMAGE)
    texts = torch.randint(3, VOCABULARY, (2, 120))
    assert model.missing_text.shape == (77,)
    present = torch.tensor([True, False])
    logits = [model.train(mode)(images, texts, None, present) for mode in (True, False)]
    assert_parity("logits", *logits, TABLE)


def test_the_tokenizer_beside_the_model_says_what_an_empty_text_is(tmp_path):
    """BERT's configurations do not name [CLS] and [SEP], whose ids differ between vocabularies."""
    words = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"])}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=9)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(tmp_path)
    model = open_clip_model("bert", tmp_path)
    tower = towers_of(model)["text"]
    assert tower.substitute(model).tolist() == [2, 3, *[0] * 38]
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: got a file that is no tokenizer"):
        tower.substitute(model)


def test_heads_that_are_narrower_than_their_block(tmp_path):
    """As in mT5 small: 6 heads of 64 on a width of 512."""
    transformers.MT5Config(**{**MT5, "d_kv": 4}).save_pretrained(tmp_path)
    text = {"hf_model_name": str(tmp_path), "hf_model_pretrained": False, "hf_pooler_type": "mean_pooler"}
    model = open_clip.CustomTextCLIP(WIDTH, vision_cfg=SEES, text_cfg=text)
    model = randomise(mora.verify(mora.patch(model.eval(), targets=("q", "v", "out"), dropout=0.0, last_layers=1)))
    shapes = {name: tuple(p.shape) for name, p in mora.adapter_parameters(model) if name.startswith("common")}
    assert shapes == {"common.0.image": (32, 4), "common.0.text": (32, 4), "common.0.text_16": (16, 4)}
    pixels, ids = torch.randn(2, 3, IMAGE, IMAGE), torch.randint(3, 50, (2, 12))
    adapted = model.encode_image(pixels), model.encode_text(ids)
    merged = mora.merge(model)
    torch.testing.assert_close((merged.encode_image(pixels), merged.encode_text(ids)), adapted, rtol=1e-4, atol=1e-5)


NAMED = {"image": "pixel_values", "video": "pixel_values", "audio": "input_features"}


def own_hugging_face(model, inputs):
    """Normalised embeddings by the class's own forward, padding masked where its tower has padding."""
    other, text = inputs
    texts, pad = inputs[text], towers_of(model)[text].padding(model)
    given = {"input_ids": texts} | ({} if pad is None else {"attention_mask": (texts != pad).long()})
    if type(model).__name__ == "Siglip2Model":
        image = inputs[other]
        given |= {"pixel_values": image[..., :-3], "pixel_attention_mask": image[..., -3].int()}
        given["spatial_shapes"] = image[:, 0, -2:].long()
    else:
        given[NAMED[other]] = inputs[other]
    if type(model).__name__ == "ClapModel":
        given["is_longer"] = torch.ones(len(texts), 1, dtype=torch.bool)
    if type(model).__name__ == "FlavaModel":
        output = model(**given, skip_multimodal_encoder=True)
        projected = model.image_projection(output.image_embeddings), model.text_projection(output.text_embeddings)
        return [torch.nn.functional.normalize(each[:, 0], dim=-1) for each in projected]
    output = model(**given)
    if type(model).__name__ == "XCLIPModel":  # whose texts look at the video afterwards
        text_embeds = model.text_projection(output.text_model_output.pooler_output)
        return output.video_embeds, torch.nn.functional.normalize(text_embeds, dim=-1)
    return getattr(output, f"{other}_embeds"), output.text_embeds


# Whose tokens of "", or whose white, nothing says.
GIVEN = {
    **{
        name: {"missing": {"text": torch.tensor([3, 4])}}
        for name in (
            "BlipModel",
            "ChineseCLIPModel",
            "FlavaModel",
            "VisionTextDualEncoderModel of ViT and BERT",
            "VisionTextDualEncoderModel of CLIP and BERT",
        )
    },
    "GroupViTModel": {"missing": {"image": torch.ones(3, IMAGE, IMAGE)}, "training": False},
    "XCLIPModel": {"missing": {"video": torch.ones(2, 3, IMAGE, IMAGE)}},
}


@pytest.mark.parametrize("name", PAIRS)
def test_classes_of_two_encoders(name, tmp_path):
    """GroupViT draws its groups at random in training."""
    lives(PAIRS[name], own_hugging_face, tmp_path, **GIVEN.get(name, {}))


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("ChineseCLIPModel", "empty_text"),
        ("FlavaModel", "empty_text"),
        ("GroupViTModel", "missing_image"),
        ("XCLIPModel", "missing['video']"),
    ],
)
def test_a_substitute_that_nothing_says_is_asked_for(name, argument):
    model = PAIRS[name]()
    modality = next(name for name in ("text", "image", "video") if name in argument)
    tower = towers_of(model)[modality]
    with pytest.raises(ValueError, match=rf"{re.escape(argument)}: got None for a .*, expected"):
        tower.substitute(model)


def test_a_missing_sound_is_silence_as_the_extractor_makes_it():
    model = two_towers("Clap", {**SWIN, "spec_size": 256, "num_mel_bins": 64}, ROBERTA, key="audio_config")
    silence = transformers.ClapFeatureExtractor(truncation="rand_trunc")(
        torch.zeros(48000).numpy(), sampling_rate=48000
    )
    found = towers_of(model)["audio"].substitute(model)
    torch.testing.assert_close(found, torch.as_tensor(silence["input_features"][0], dtype=torch.float32))


def test_a_tower_without_attention_is_named_unless_it_stays_as_it_is(tmp_path):
    model = ALIGN()
    modules = dict(model.named_modules())
    with pytest.raises(
        ValueError, match=r"AlignVisionModel at vision_model of model_type 'align_vision_model', whose a"
    ):
        mora.patch(model)
    assert dict(model.named_modules()) == modules
    missing = {"image": torch.ones(3, IMAGE, IMAGE), "text": torch.tensor([3, 4])}
    lives(ALIGN, own_hugging_face, tmp_path, missing, training=False, adapt={"image": "frozen", "text": "mora"})


def test_naflex_images_are_one_tensor():
    model = PAIRS["Siglip2Model"]()
    shapes = torch.tensor([[2, 5], [4, 4]])
    mask = torch.arange(16) < shapes.prod(dim=1, keepdim=True)
    patches = torch.randn(2, 16, 192)
    theirs = model.get_image_features(
        pixel_values=patches, pixel_attention_mask=mask.int(), spatial_shapes=shapes
    ).pooler_output
    packed = naflex(patches, mask, shapes)
    assert packed.shape == (2, 16, 195)
    assert_parity("image", towers_of(model)["image"].encode(model, packed), theirs, TABLE)
    with pytest.raises(ValueError, match=r"got shapes \(2, 15\) and \(2, 2\), expected \(2, 16\) and \(2, 2\)"):
        naflex(patches, mask[:, 1:], shapes)
    with pytest.raises(ValueError, match="got 300, expected at most 256"):
        naflex(patches, mask, shapes * 60)


def own_single(model, inputs):
    """What the class projects or pools, normalised."""
    ((modality, given),) = inputs.items()
    named = {"pixel_values": given} if modality == "image" else {"input_ids": given}
    if type(model).__name__ in ("BertModel", "RobertaModel"):
        named["attention_mask"] = (given != model.config.pad_token_id).long()
    output = model(**named)
    projected = getattr(output, f"{modality}_embeds", None)
    return [torch.nn.functional.normalize(output.pooler_output if projected is None else projected, dim=-1)]


@pytest.mark.parametrize("name", SINGLE)
def test_a_single_encoder(name, tmp_path):
    lives(SINGLE[name], own_single, tmp_path, {"text": torch.tensor([3, 4])} if name == "BertModel" else None)
    model = SINGLE[name]()
    ((modality, tower),) = towers_of(model).items()
    if name == "BertModel":
        with pytest.raises(ValueError, match="empty_text: got None for a BertModel"):
            tower.substitute(model)
    else:
        assert tower.substitute(model).shape == tower.random(model, 2).shape[1:], modality


def test_a_single_encoder_without_a_pooler_is_refused():
    model = transformers.BertModel(transformers.BertConfig(**BERT), add_pooling_layer=False)
    with pytest.raises(ValueError, match=r"got a BertModel, .*: it has no pooler \(add_pooling_layer=False\)"):
        towers_of(model)
    head = transformers.BertForSequenceClassification(transformers.BertConfig(**BERT))
    with pytest.raises(ValueError, match=r"BertForSequenceClassification, expected the CLIP itself: pass model\.bert"):
        towers_of(head)
