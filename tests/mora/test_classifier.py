"""MissingModalityClassifier: what is missing is its substitute, what is there is untouched."""

import pytest
import torch

import mora
from mora_kernels.testing import assert_parity
from tests.mora.models import CONTEXT, IMAGE, MODELS, VOCABULARY, images, open_clip_model, randomise, tokens

TABLE = {torch.float32: 2e-5}
families = pytest.mark.parametrize("family", MODELS)
OPEN_CLIP = ("open_clip", "own_blocks")
# The substitutes of each family's own preprocessing: a white pixel, and how "" begins and goes on.
CLIP_WHITE = (1.9303, 2.0749, 2.1459)
WHITE = {"siglip": (1.0, 1.0, 1.0)}
EMPTY = {"siglip": (1, 1, 1), "metaclip_2": (0, 2, 1), **dict.fromkeys(OPEN_CLIP, (98, 99, 0))}


def make(family, **options):
    model = randomise(mora.patch(MODELS[family](), dropout=0.0, **options))
    torch.manual_seed(0)
    return mora.MissingModalityClassifier(model, 5).eval()


def white(batch, family):
    return torch.tensor(WHITE.get(family, CLIP_WHITE))[:, None, None].expand(batch, 3, IMAGE, IMAGE).clone()


def empty(batch, family):
    begin, end, padding = EMPTY.get(family, (98, 99, 99))
    return torch.tensor([[begin, end, *[padding] * (CONTEXT - 2)]]).expand(batch, -1)


@families
def test_the_substitutes_are_those_of_the_model_s_own_preprocessing(family):
    classifier = make(family)
    assert torch.equal(classifier.missing_text, empty(1, family)[0])
    torch.testing.assert_close(classifier.missing_image, white(1, family)[0], rtol=0, atol=1e-4)


@families
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_missing_rows_are_the_published_substitutes(family, mode):
    classifier = make(family).train(mode == "train")
    image, text = images(4), tokens(4)
    image_present = torch.tensor([True, False, True, False])
    text_present = torch.tensor([True, True, False, True])
    with torch.no_grad():
        actual = classifier(image, text, image_present, text_present)
        image[~image_present], text[~text_present] = white(2, family), empty(1, family)
        assert_parity("logits", actual, classifier(image, text), {torch.float32: 1e-4})


@families
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_none_means_missing(family, mode):
    classifier = make(family).train(mode == "train")
    with torch.no_grad():
        assert_parity(
            "text only", classifier(text=tokens()), classifier(white(3, family), tokens()), {torch.float32: 1e-4}
        )
        expected = classifier(images(), empty(3, family))
        assert_parity("image only", classifier(images()), expected, TABLE)
        assert_parity("mask", classifier(images(), None, torch.ones(3, dtype=torch.bool)), expected, TABLE)


@families
def test_absent_rows_are_not_looked_at(family):
    classifier = make(family)
    present = torch.tensor([True, False, True])
    image = images()
    with torch.no_grad():
        expected = classifier(image, tokens(), image_present=present)
        image[1] = float("nan")
        for mode in (True, False):
            assert torch.isfinite(classifier.train(mode)(image, tokens(), image_present=present)).all()
        assert torch.equal(classifier(image, tokens(), image_present=present), expected)


@families
def test_gradients_reach_every_adapter_and_the_head(family):
    classifier = make(family).train()
    classifier(images(), tokens(), torch.tensor([True, False, True])).square().sum().backward()
    assert all(p.grad is not None for _, p in mora.adapter_parameters(classifier.model))
    assert classifier.head.weight.grad is not None
    assert {n for n, p in classifier.named_parameters() if p.requires_grad and not n.startswith("model")} == {
        "head.weight",
        "head.bias",
    }


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_trimmed_texts(mode):
    """open_clip's towers need full-length texts; Hugging Face's take a batch trimmed to its longest."""
    classifier = make("hugging_face").train(mode == "train")
    text = tokens(3)
    text[:, 6:] = VOCABULARY - 1
    present = torch.tensor([True, False, True])
    with torch.no_grad():
        full = classifier(images(), text, text_present=present)
        assert_parity("logits", classifier(images(), text[:, :7], text_present=present), full, TABLE)


ONE = torch.ones(3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(), "image, text: got None for both"),
        (dict(image=images(3), text=tokens(2)), "text: got 2 rows, expected 3"),
        (dict(image=images(), text=tokens(), image_present=ONE[:2]), r"image_present: got .*expected a bool tensor"),
        (dict(image=images(), text_present=ONE), "text_present: got True rows without the data"),
        (dict(image=images(), text=tokens(), text_present=ONE.float()), "text_present: got torch.float32"),
        (dict(image=images(), text=tokens(), text_present=[True] * 3), "text_present: got list"),
        (dict(image=images(), image_present=torch.tensor([True, False, True])), r"both False in rows \[1\]"),
        (dict(image=images(), text=tokens(), image_present=~ONE, text_present=~ONE), r"rows \[0, 1, 2\]"),
    ],
)
def test_wrong_inputs_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make("open_clip")(**arguments)


@pytest.mark.parametrize("classes", [0, -1, 2.5, True])
def test_num_classes(classes):
    with pytest.raises(ValueError, match="num_classes: got"):
        mora.MissingModalityClassifier(open_clip_model(), classes)


def test_an_unpatched_model_is_a_linear_probe():
    classifier = mora.MissingModalityClassifier(open_clip_model().requires_grad_(False), 4)
    classifier(images(), tokens()).sum().backward()
    assert classifier.head.weight.grad is not None
    assert float(classifier.head.weight.detach().std()) == pytest.approx(0.02, rel=0.2)


def test_food101_counts():
    """61,440 adapters and 103,525 in the head: the paper's 0.11 % of CLIP."""
    import open_clip

    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config("ViT-B-16-quickgelu"))
    base = sum(p.numel() for p in model.parameters())
    assert base == 149_620_737
    for preset, adapters in {"mmimdb": 61_440, "food101": 61_440, "hateful_memes": 112_640}.items():
        summary = mora.summary(mora.patch(model, mora.PRESETS[preset]))
        assert (summary.adapter_parameters, summary.base_parameters) == (adapters, base)
        if preset == "food101":
            classifier = mora.MissingModalityClassifier(model, 101)
            assert sum(p.numel() for p in classifier.parameters() if p.requires_grad) == 164_965
        mora.unpatch(model)
