"""A model of one's own: towers by path, glob or list; projections by usual names or given; three modalities."""

import copy
import json
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mora
from mora_kernels.testing import assert_parity
from tests.mora.models import open_clip_model, randomise

TABLE = {torch.float32: 2e-5, torch.float64: 1e-10}
WIDTHS = {"image": 16, "text": 24, "audio": 8}
USUAL = {
    "image": ("attn", ("q_proj", "k_proj", "v_proj", "out_proj")),
    "text": ("attention.self", ("query", "key", "value", None)),
    "audio": ("", ("to_q", "to_k", "to_v", "to_out")),
}


class Attention(nn.Module):
    def __init__(self, width, names):
        super().__init__()
        self.names = names
        for name in names:
            if name is not None:
                setattr(self, name, nn.Linear(width, width))

    def forward(self, x):
        q, k, v, out = (nn.Identity() if name is None else getattr(self, name) for name in self.names)
        return out(F.scaled_dot_product_attention(q(x), k(x), v(x)))


class Block(Attention):
    """Holds its projections below `path`, or itself where that is empty; BERT's output stands beside its attention."""

    def __init__(self, width, path, names):
        super().__init__(width, names if not path else ())
        self.path, inner = path.split("."), Attention(width, names)
        for part in reversed(self.path[1:]):
            above = nn.Module()
            above.add_module(part, inner)
            above.output = nn.ModuleDict({"dense": nn.Linear(width, width)})
            inner = above
        if path:
            self.add_module(self.path[0], inner)

    def forward(self, x):
        if self.path == [""]:
            return x + super().forward(x)
        found = getattr(self, self.path[0])
        if len(self.path) == 1:
            return x + found(x)
        return x + found.output.dense(getattr(found, self.path[1])(x))


class Stack(nn.Module):
    def __init__(self, width, path, names, depth=3):
        super().__init__()
        self.layers = nn.ModuleList(Block(width, path, names) for _ in range(depth))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x.mean(dim=1)


class Three(nn.Module):
    """Takes rows [B, 5, width] of each modality."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        for modality, width in WIDTHS.items():
            self.add_module(modality, Stack(width, *USUAL[modality]))

    def encode_image(self, x):
        return self.image(x)

    def get_text_features(self, x):
        return self.text(x)


def towers(model):
    """By path, by glob and by the list itself."""
    return {
        "image": mora.Tower("image.layers", missing=torch.ones(5, 16)),
        "text": mora.Tower("text.layers.*", missing=lambda model: torch.zeros(5, 24), width=24),
        "audio": mora.Tower(
            model.audio.layers, encode=model.audio, missing=torch.zeros(5, 8), example=torch.ones(5, 8)
        ),
    }


def given(batch=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {modality: torch.randn(batch, 5, width, generator=generator) for modality, width in WIDTHS.items()}


def embed(model, inputs):
    return [getattr(model, modality)(inputs[modality]) for modality in WIDTHS]


def test_three_towers_are_adapted_from_end_to_end(tmp_path):
    """Patch, proof, equation, files, classifier, copies, merge, unpatch bit for bit."""
    model, base, inputs = Three(), Three(), given()
    targets = ("q", "k", "v", "out")
    mora.patch(model, towers=towers(model), dropout=0.0, targets=targets, alpha=dict.fromkeys(WIDTHS, 0.05))
    randomise(mora.verify(model))
    paths = {row.name: row.path for row in mora.summary(model).projections}
    assert len(paths) == 3 * 2 * 4
    assert paths["text.2.out"] == "text.layers.2.attention.output.dense" and paths["audio.1.q"] == "audio.layers.1.to_q"
    assert paths["image.1.k"] == "image.layers.1.attn.k_proj"
    for _, projection in model.mora.projections():  # the mean of both others' Gram matrices
        common = projection.common
        factors = {name: common.of(name).detach() for name in common.modalities}
        gram = sum(f.T @ f for name, f in factors.items() if name != projection.modality) / 2
        s, w = factors[projection.modality], projection.weight
        moved = w + 0.05 * s @ gram @ s.T, w + 0.05 * (projection.specific_a @ projection.specific_b).T
        magnitudes = projection.common_magnitude, projection.specific_magnitude
        expected = sum(m * x / x.norm(dim=0) for m, x in zip(magnitudes, moved, strict=True))
        assert_parity("W_eff", projection.effective_weight(), expected, TABLE)

    adapted = [one.detach() for one in embed(model, inputs)]
    assert not any(torch.allclose(a, b) for a, b in zip(adapted, embed(base, inputs), strict=True))
    saved = mora.save_adapter(model, tmp_path)
    assert json.loads((saved / "adapter_config.json").read_text())["towers"]["audio"]["kind"] == "user-defined"
    other = Three()
    loaded = mora.load_adapter(other, saved, towers=towers(other))
    for one in (loaded, copy.deepcopy(model)):
        assert all(torch.equal(a, b) for a, b in zip(embed(one, inputs), adapted, strict=True))

    check_classifier(model, inputs)
    for one, expected in zip(embed(mora.merge(loaded), inputs), adapted, strict=True):
        assert_parity("embedding", one, expected, TABLE)
    mora.unpatch(model)
    assert all(torch.equal(tensor, base.state_dict()[name]) for name, tensor in model.state_dict().items())


def check_classifier(model, inputs):
    """Any modalities, by name; a missing one is its substitute."""
    classifier = mora.MissingModalityClassifier(model, 3).eval()
    assert classifier.head.in_features == 16 + 24 + 8
    present = {"audio": torch.tensor([True, False, True, False]), "text": torch.tensor([True, True, False, False])}
    logits = classifier(inputs=inputs, present=present)
    for row in range(4):
        one = {m: x[row : row + 1] for m, x in inputs.items() if m not in present or bool(present[m][row])}
        assert_parity("logits", classifier(inputs=one), logits[row : row + 1], TABLE)
    instead = {m: x.clone() for m, x in inputs.items()}
    instead["audio"][~present["audio"]] = 0.0
    instead["text"][~present["text"]] = 0.0
    assert_parity("logits", classifier(inputs=instead), logits, TABLE)
    nobody = dict.fromkeys(WIDTHS, torch.tensor([True, True, True, False]))
    for wrong, message in (
        ({}, "^image, text, audio: got None for all, expected at least one modality"),
        ({"inputs": inputs, "present": nobody}, r"got all False in rows \[3\], expected one to be there"),
        ({"inputs": {"video": inputs["image"]}}, "^inputs: got video, expected some of image, text, audio"),
        ({"inputs": inputs, "image": inputs["image"]}, "^inputs: got present alone, or image and text as well"),
        ({"inputs": {**inputs, "text": inputs["text"][:2]}}, "^text: got 2 rows, expected 4, those of image"),
        ({"inputs": inputs, "present": {"text": torch.ones(4)}}, r"^present\['text'\]: got torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            classifier(**wrong)


def test_a_classifier_takes_a_model_that_is_not_patched():
    model = Three().eval()
    missing = {"image": torch.zeros(5, 16)}
    classifier = mora.MissingModalityClassifier(model, 2, towers=towers(model), missing=missing).eval()
    inputs = given()
    zero = {**inputs, "image": torch.zeros_like(inputs["image"])}
    del inputs["image"]
    assert_parity("logits", classifier(inputs=inputs), classifier(inputs=zero), TABLE)


def test_without_encode_a_model_is_adapted_and_what_needs_it_says_so(tmp_path):
    model = Three()
    with pytest.warns(
        UserWarning, match=r"audio tower runs what was adapted was not tried: encode: got None .*encode_aud"
    ):
        mora.patch(model, towers={"audio": "audio.layers"})
    with pytest.raises(
        ValueError, match=r"^verify: encode: got None for the audio tower, and the model has no encode_audi"
    ):
        mora.verify(model)
    with pytest.raises(ValueError, match="^missing: got None for the audio tower, expected one input"):
        mora.MissingModalityClassifier(model, 2)
    with pytest.raises(ValueError, match="^encode: got None for the audio tower"):
        mora.MissingModalityClassifier(model, 2, missing={"audio": torch.zeros(5, 8)})
    assert mora.load_adapter(model, mora.save_adapter(model, tmp_path)) is model
    model = Three()
    with pytest.warns(UserWarning, match="image tower .* example: got None for the image tower, expected one input"):
        mora.patch(model, towers={"image": "image.layers"})


def test_what_is_not_run_is_noticed():
    model = Three()
    idle = {"image": mora.Tower("image.layers", encode=lambda model, x: x.mean(dim=1), example=torch.ones(5, 16))}
    with pytest.raises(ValueError, match=r"image\.1\.q, .*would never run"):
        mora.patch(model, towers=idle)
    assert not hasattr(model, "mora")


class Transformer(nn.Module):
    """torch's own encoder, which computes attention itself where nobody looks."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True, norm_first=False)
        self.encoder = nn.TransformerEncoder(layer, 3)

    def embed_series(self, x):
        return self.encoder(x).mean(dim=1)


def test_torchs_own_encoder_layers_run_what_was_adapted():
    model = Transformer().eval()
    mora.patch(
        model, towers={"series": mora.Tower("encoder.layers", example=torch.ones(5, 16))}, targets=("q", "v", "out")
    )
    randomise(mora.verify(model))
    x = torch.randn(2, 5, 16)
    expected = model.embed_series(x.requires_grad_())
    with torch.no_grad():
        assert_parity("embedding", model.embed_series(x), expected, TABLE)
        with mora.disabled(model):
            assert_parity("embedding", model.embed_series(x), Transformer().eval().embed_series(x), TABLE)
        padding = torch.tensor([[False] * 5, [False, False, False, True, True]])
        with pytest.raises(ValueError, match="^query: got a nested tensor, expected nn.TransformerEncoder"):
            model.encoder(x, src_key_padding_mask=padding)
        assert_parity("embedding", mora.merge(model).embed_series(x), expected, TABLE)


def test_projections_may_be_given():
    model = Three()
    names = {"value": "attn.q_proj", "q": "attn.v_proj"}  # exchanged, to see that they are read
    mora.patch(model, towers={"image": mora.Tower("image.layers", projections=names, example=torch.ones(5, 16))})
    paths = [row.path for row in mora.summary(model).projections]
    assert paths[:2] == ["image.layers.1.attn.v_proj", "image.layers.1.attn.q_proj"]
    model = open_clip_model()
    blocks = [model.transformer.resblocks[n] for n in (1, 3)]
    mora.patch(
        model, towers={"text": mora.Tower(blocks, projections="attn", example=torch.ones(16, dtype=torch.int64))}
    )
    assert [row.path for row in mora.summary(mora.verify(model)).projections] == [
        f"transformer.resblocks.{n}.attn.{target}" for n in (1, 3) for target in "qv"
    ]


def test_an_adapter_of_another_kind_of_tower_is_refused(tmp_path):
    model = open_clip_model()
    image = mora.Tower("visual.transformer.resblocks", example=torch.ones(3, 32, 32))
    text = mora.Tower("transformer.resblocks", example=torch.ones(16, dtype=torch.int64))
    saved = mora.save_adapter(mora.patch(model, towers={"image": image, "text": text}), tmp_path)
    with pytest.raises(
        ValueError, match=r"^towers: .* of kind 'user-defined' .* for 'image', the model's is 'open_clip image'"
    ):
        mora.load_adapter(open_clip_model(), saved)
    path = saved / "adapter_config.json"
    content = json.loads(path.read_text())
    del content["towers"]  # as earlier versions wrote it
    path.write_text(json.dumps(content))
    mora.load_adapter(open_clip_model(), saved)


def test_descriptions_can_be_kept():
    model = Three().eval()
    mora.patch(model, towers=towers(model) | {"text": mora.Tower("text.layers", missing=torch.zeros(5, 24))})
    found = pickle.loads(pickle.dumps(model.mora.towers))
    assert found == copy.deepcopy(found) == model.mora.towers
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = pickle.loads(pickle.dumps(model))
    inputs = given()
    assert all(torch.equal(a, b) for a, b in zip(embed(again, inputs), embed(model, inputs), strict=True))


class FusedBlock(nn.Module):
    """As many hand-written ones are: one linear for q, k and v, called by the block itself."""

    def __init__(self):
        super().__init__()
        self.to_qkv, self.to_out = nn.Linear(16, 48, bias=False), nn.Sequential(nn.Linear(16, 16), nn.Identity())

    def forward(self, x):
        return x + self.to_out(F.scaled_dot_product_attention(*self.to_qkv(x).chunk(3, dim=-1)))


def test_one_linear_for_q_k_and_v_is_read():
    torch.manual_seed(0)
    model = nn.Module()
    model.stack = nn.Sequential(*(FusedBlock() for _ in range(2)))
    plain, x = copy.deepcopy(model.eval()), torch.randn(2, 5, 16)
    targets, encode = ("q", "v", "out"), lambda model, x: model.stack(x).mean(dim=1)
    with pytest.raises(ValueError, match="^model: got a Sequential, which would take the adapters for one of its own"):
        mora.patch(model.stack, towers={"series": ["0", "1"]})
    found = mora.Tower("stack", encode=encode, example=torch.ones(5, 16))
    mora.patch(model, towers={"series": found}, targets=targets, last_layers=1)
    given = mora.Tower(
        "stack", {**dict.fromkeys("qkv", "to_qkv"), "out": "to_out.0"}, encode, example=torch.ones(5, 16)
    )
    twin = mora.patch(copy.deepcopy(plain), towers={"series": given}, targets=targets, last_layers=1)
    assert twin.mora.towers["series"].layout == model.mora.towers["series"].layout
    randomise(mora.verify(model))
    with torch.no_grad():
        for name, projection in model.mora.projections():
            target = name.split(".")[-1]
            linear = plain.stack[1].to_out[0] if target == "out" else plain.stack[1].to_qkv
            start = 0 if target == "out" else 16 * "qkv".index(target)
            linear.weight[start : start + 16] = projection.effective_weight()
        assert_parity("output", model.stack(x), plain.stack(x), TABLE)


class Cross(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.TransformerDecoderLayer(8, 2, 16)])
        self.fused = nn.ModuleList([nn.ModuleDict({"dense": nn.Linear(8, 24), "proj": nn.Linear(8, 8)})])
        self.mixed = nn.ModuleList([Block(8, *USUAL["image"]), Block(8, *USUAL["text"])])


WRONG = [
    ("image.layer", r"^towers\['a'\]: got 'image\.layer', which leads nowhere: image has layers$"),
    ("video.layers", r"which leads nowhere: the model has image, text, audio$"),
    ("image.layers.0", r"^towers\['a'\]: image\.layers\.0 is a Block with attn, expected a list of blocks"),
    ("image.*.9.x", r"^towers\['a'\]: no module matches 'image\.\*\.9\.x', expected a path such as 'image\.layers'"),
    ([], r"^towers\['a'\]: got \[\], expected a dotted path, a glob, a list of blocks or a mora\.Tower"),
    (7, r"^towers\['a'\]: got 7, expected a dotted path"),
    (nn.ModuleList([nn.Linear(2, 2)]), r"^towers\['a'\]: got a ModuleList, which is no module of the model"),
    (mora.Tower("image.layers", encode="encode_video"), r"encode is 'encode_video', which is no method of the model"),
    (mora.Tower("image.layers", encode=3), "encode is 3, expected a path or a function"),
    (
        mora.Tower("image.layers", projections={"q": "attn.query"}),
        r"projections\['q'\] is 'attn\.query', the block's linears are attn\.q_proj, attn\.k_proj",
    ),
    (mora.Tower("image.layers", projections={"fc3": "attn.q_proj"}), "projections has 'fc3', expected each of q, k"),
    (
        mora.Tower("image.layers", projections="attn"),
        "projections is 'attn', expected an attention with in_proj_weight",
    ),
]


@pytest.mark.parametrize(("tower", "message"), WRONG)
def test_what_leads_nowhere_is_said(tower, message):
    model = Three()
    with pytest.raises(ValueError, match=message):
        mora.patch(model, towers={"a": tower})
    assert not hasattr(model, "mora")


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ("layers", r"with several attentions, 'self_attn', 'multihead_attn': say which: projections="),
        ("fused", r"with dense 24 x 8, proj 8 x 8: looked for in_proj_weight, or q, k, v as .*; say which"),
        ("mixed", r"mixed\.1 has no attn as the first block has, expected blocks alike: attention"),
    ],
)
def test_blocks_that_are_not_understood_are_described(blocks, message):
    with pytest.raises(ValueError, match=message):
        mora.patch(Cross(), towers={"a": blocks})


def test_names_of_modalities_are_plain_words():
    for name in ("train", "my.audio", "rank", 3):
        with pytest.raises(ValueError, match="^towers: got the name"):
            mora.patch(Three(), towers={name: "image.layers"})
    with pytest.raises(ValueError, match=r"^towers: got \{\}, expected a mapping"):
        mora.patch(Three(), towers={})
