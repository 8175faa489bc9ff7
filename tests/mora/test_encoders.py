"""Towers that are encoders of transformers: within open_clip's models, in its own classes, alone."""

import open_clip
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, processors

import mora
from mora.towers import towers_of
from mora_kernels.testing import assert_parity
from tests.mora.models import IMAGE, VISION, randomise

TABLE = {torch.float32: 2e-5, torch.float64: 1e-10}
VOCABULARY, WIDTH = 60, 32
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
        return open_clip.CoCa(16, multimodal_cfg=decoder, text_cfg=text, vision_cfg=vision).eval()
    return open_clip.CustomTextCLIP(16, vision_cfg=SEES, text_cfg=text).eval()


def lives(make, own, tmp_path, empty=None, training=True):
    """One model through everything; `own(model, inputs)` are its embeddings by its library's own forward, normalised.

    Returns what stood for missing inputs.
    """
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
        identity = embed(mora.patch(make().double(), init="identity").eval())
    model = randomise(mora.verify(mora.patch(base, dropout=0.0, targets=("q", "k", "v", "out"))))
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
        assert not torch.allclose(other, one)
        assert not torch.allclose(one[0], one[1])
        norms = one.norm(dim=-1)
        assert not torch.allclose(norms, torch.ones_like(norms)), "normalised"

    loaded = mora.load_adapter(make().double(), mora.save_adapter(model, tmp_path / "adapter"))
    if list(towers) == ["image", "text"]:
        saving, nothing = (
            mora.MissingModalityClassifier(loaded, 3, empty_text=empty, savings=savings)
            for savings in (None, mora.Savings.none())
        )
        nothing.head = saving.head
        present = torch.tensor([True, False, True]), torch.tensor([True, True, False])
        for mode in (True, False) if training else (False,):
            for given in ((*inputs.values(), *present), (inputs["image"], None), (None, inputs["text"])):
                assert_parity("logits", *(one.train(mode)(*given) for one in (saving, nothing)), TABLE)
    with torch.no_grad():
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
    given = torch.tensor([7, 2]) if empty is None else None
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


def test_a_projection_that_is_not_square_is_named(tmp_path):
    """As in mT5 small: 6 heads of 64 on a width of 512."""
    transformers.MT5Config(**{**MT5, "d_kv": 4}).save_pretrained(tmp_path)
    text = {"hf_model_name": str(tmp_path), "hf_model_pretrained": False, "hf_pooler_type": "mean_pooler"}
    model = open_clip.CustomTextCLIP(WIDTH, vision_cfg=SEES, text_cfg=text)
    with pytest.raises(
        ValueError, match=r"targets: text\.transformer\.block\.0\.layer\.0\.SelfAttention 'q' has a 16 x 32"
    ):
        mora.patch(model)
