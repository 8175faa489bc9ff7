"""Prompts by what a row lacks: a batch equals a plain loop over its rows, and every pattern trains its own alone."""

import open_clip
import pytest
import torch
import torch.nn.functional as F

import mora
from mora.adapters.prompts import Prompts, PromptSize, add_prompts, prompts_of
from tests.mora.models import MODELS, TEXT, VISION, images, short_tokens, tokens

KINDS = ("mmp", "dcp")
SIZE = PromptSize(7, 3)
CODES = {(True, False): 0, (False, True): 1, (True, True): 2}  # (image, text): place in the prompts
HAS = ((True, True), (True, False), (False, True), (True, True), (False, True), (True, False))
families = pytest.mark.parametrize("family", ["open_clip", "hugging_face"])
kinds = pytest.mark.parametrize("kind", KINDS)


def classifier(family, kind, savings=None):
    torch.manual_seed(5)
    model = MODELS[family]().double().requires_grad_(False)
    empty = short_tokens([2])[0]
    made = mora.MissingModalityClassifier(model, 5, empty_text=empty, savings=savings).double()
    add_prompts(model, kind, SIZE)
    with torch.no_grad():  # far enough from the start for every part to show
        for parameter in model.prompts.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def batch(has=HAS):
    image, text = images(len(has)).double(), short_tokens([5, 7, 15, 9, 3, 8][: len(has)])
    return image, text, torch.tensor([row[0] for row in has]), torch.tensor([row[1] for row in has])


def attend(x, source, q, k, v, out, heads, mask=None):
    """Attention of x [N, d] to rows [L, d]; q, k, v, out: (weight, bias)."""
    q, k, v = (
        F.linear(rows, *w).unflatten(-1, (heads, -1)).transpose(0, 1) for rows, w in ((x, q), (source, k), (source, v))
    )
    scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    scores = scores if mask is None else scores + mask
    return F.linear((scores.softmax(-1) @ v).transpose(0, 1).flatten(1), *out)


def packed(attention):
    thirds = zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
    return [*thirds, (attention.out_proj.weight, attention.out_proj.bias)]


def of_row(prompts, modality, has, hidden):
    """(prompts of each block [N, d], those that stay [M, d]) of one row, whose own rows that count are `hidden`."""
    code = CODES[has]
    if not hasattr(prompts, "common"):
        return list(prompts.tokens[modality][code]), hidden[:0]
    last, found = {"image": prompts.first["image"][int(has[0])], "text": prompts.first["text"][int(has[1])]}, []
    for layer in range(prompts.size.depth):
        joined = torch.cat([last["image"], last["text"]], dim=-1)
        last = {name: prompts.correlate[name][layer](joined) for name in last}
        found.append(last[modality])
    attention = prompts.attend[modality]
    dynamic = attend(prompts.queries[modality][code], hidden, *packed(attention), heads=1)
    return found, torch.cat([prompts.project[modality](prompts.common[code]), dynamic])


def through(layers, prompts, modality, has, hidden, end, causal):
    """Row `end` of one sample's rows [L, d] after every block, the prompts before them."""
    renewed, kept = of_row(prompts, modality, has, hidden[: end + 1] if causal else hidden)
    x = torch.cat([renewed[0], kept, hidden])
    mask = torch.full((len(x), len(x)), float("-inf"), dtype=x.dtype).triu(1) if causal else None
    for index, layer in enumerate(layers):
        if 0 < index < len(renewed):
            x = torch.cat([renewed[index], x[len(renewed[index]) :]])
        if hasattr(layer, "self_attn"):
            attention, first, second = layer.self_attn, layer.layer_norm1, layer.layer_norm2
            projections = [
                (p.weight, p.bias) for p in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj)
            ]
        else:
            attention, first, second, projections = layer.attn, layer.ln_1, layer.ln_2, packed(layer.attn)
        normed = first(x)
        x = x + attend(normed, normed, *projections, heads=attention.num_heads, mask=mask)
        x = x + layer.mlp(second(x))
    return x[len(renewed[0]) + len(kept) + end]


def embedded(model, image, text, has):
    """[image; text] of one row, whatever stands for what it lacks, by plain operations."""
    end, prompts = int((text == 99).int().argmax()), prompts_of(model)
    if hasattr(model, "visual"):
        visual = model.visual
        patches = visual.conv1(image[None]).flatten(2).transpose(1, 2)[0]
        rows = visual.ln_pre(torch.cat([visual.class_embedding[None], patches]) + visual.positional_embedding)
        pooled = through(visual.transformer.resblocks, prompts, "image", has, rows, 0, causal=False)
        seen = visual.ln_post(pooled) @ visual.proj
        rows = model.token_embedding(text) + model.positional_embedding
        pooled = through(model.transformer.resblocks, prompts, "text", has, rows, end, causal=True)
        return torch.cat([seen, model.ln_final(pooled) @ model.text_projection])
    tower = model.vision_model
    rows = tower.pre_layrnorm(tower.embeddings(image[None]))[0]
    pooled = through(tower.encoder.layers, prompts, "image", has, rows, 0, causal=False)
    seen = model.visual_projection(tower.post_layernorm(pooled))
    tower = model.text_model
    pooled = through(
        tower.encoder.layers, prompts, "text", has, tower.embeddings(input_ids=text[None])[0], end, causal=True
    )
    return torch.cat([seen, model.text_projection(tower.final_layer_norm(pooled))])


@families
@kinds
@torch.no_grad()
def test_a_batch_equals_a_loop_over_its_rows(family, kind):
    made = classifier(family, kind)
    image, text, *there = batch()
    expected = []
    for row, has in enumerate(HAS):
        parts = image[row] if has[0] else made.missing("image").double(), text[row] if has[1] else made.missing("text")
        expected.append(embedded(made.clip, *parts, has))
    expected = torch.stack(expected)
    for savings in (mora.Savings(), mora.Savings.none()):
        made.save(savings)
        for training in (True, False):
            found, _ = made.train(training).features(image, text, *there)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    image_only, _ = made.features(image[:2])  # a whole batch of one pattern, the other modality not given
    torch.testing.assert_close(image_only[1], expected[1], rtol=1e-10, atol=1e-10)
    prefix = made.prefix("image", image), made.prefix("text", text)
    found, _ = made.features(*prefix, *there)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@families
@kinds
def test_the_savings_change_no_gradient_and_no_frozen_block_is_kept(family, kind):
    image, text, *there = batch()
    gradients = []
    for savings in (mora.Savings(), mora.Savings.none()):
        made = classifier(family, kind, savings).train()
        made(image, text, *there).square().sum().backward()
        gradients.append(
            {name: parameter.grad for name, parameter in made.named_parameters() if parameter.requires_grad}
        )
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-9, atol=1e-12, msg=name)
    assert made.plan("image").first == made.plan("text").first == 0
    with pytest.raises(ValueError, match="cache: image: prompts enter the first block, by what a row lacks; text: "):
        mora.PrefixCache(made, [{"image": image[0], "text": text[0]}])


@kinds
@pytest.mark.parametrize("lacking", ["text", "image"])
def test_only_the_prompts_of_patterns_that_are_there_get_a_gradient(kind, lacking):
    made = classifier("open_clip", kind).train()
    code = {"text": 0, "image": 1}[lacking]
    has = ((True, True), (lacking != "image", lacking != "text"))
    image, text, *there = batch(has)
    made(image, text, *there).square().sum().backward()
    prompts = prompts_of(made.clip)
    trained = dict(prompts.named_parameters())
    for name, parameter in trained.items():
        if name.partition(".")[0] in ("tokens", "common", "queries"):
            dead, live = parameter.grad[1 - code], parameter.grad[[code, 2]]
        elif name.startswith("first"):  # where the modality is missing, where it is there
            live, dead = (parameter.grad, torch.zeros(1)) if name.endswith(lacking) else parameter.grad.flip(0)
        else:
            live, dead = parameter.grad, torch.zeros(1)
        assert not dead.any(), name
        # a key's bias shifts every score of a query alike: softmax does not see it
        live = (
            torch.cat([part for place, part in enumerate(live.chunk(3)) if place != 1])
            if "in_proj_bias" in name
            else live
        )
        assert all(part.abs().max() > 0 for part in (live if live.dim() > 2 or "first" in name else [live])), name
    assert all(p.grad is None for n, p in made.clip.named_parameters() if not n.startswith("prompts."))


@families
@kinds
@torch.no_grad()
def test_a_text_is_its_tokens_up_to_the_end_after_every_prompt(family, kind):
    made = classifier(family, kind, mora.Savings.none()).eval()
    _, text, *_ = batch()
    found = made.embed_rows("text", text)
    behind = torch.arange(text.shape[1]) > (text == 99).int().argmax(dim=1)[:, None]
    torch.testing.assert_close(made.embed_rows("text", text.masked_fill(behind, 5)), found, rtol=1e-10, atol=1e-10)
    before = text.clone()
    before[:, 1] = 50
    assert ((made.embed_rows("text", before) - found).abs().max(dim=1).values > 1e-6).all()
    prompts = made.clip.prompts
    (prompts.common if kind == "dcp" else prompts.tokens["text"]).mul_(-1)
    assert ((made.embed_rows("text", text) - found).abs().max(dim=1).values > 1e-6).all()


@torch.no_grad()
def test_what_stands_for_a_missing_embedding_takes_the_place_of_its_tower():
    torch.manual_seed(0)
    model = MODELS["open_clip"]().requires_grad_(False)
    made = mora.MissingModalityClassifier(model, 3, empty_text=tokens(1)[0], missing_embedding="zero")
    add_prompts(model, "dcp", SIZE)
    image, text, *there = batch()
    for training in (True, False):
        features, _ = made.train(training).features(image.float(), text, *there)
        assert not features[~there[0], :32].any() and not features[~there[1], 32:].any()
        lone = made.embed_rows("image", image.float()[1:2], torch.tensor([0]))
        torch.testing.assert_close(features[1, :32], lone[0], rtol=1e-4, atol=1e-5)


def test_depth_ends_with_the_shallower_tower_and_parameters_are_float32():
    model = MODELS["open_clip"](text_layers=2).bfloat16()
    made = add_prompts(model, "mmp", PromptSize())
    assert made.size == (36, 2) and {p.dtype for p in made.parameters()} == {torch.float32}
    assert isinstance(made, Prompts) and prompts_of(model) is made


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (PromptSize(2, 6), "prompt_length: got 2 for method 'dcp', expected a whole number from 3 to 4,096"),
        (PromptSize(36, 0), "prompt_depth: got 0 for method 'dcp', expected a whole number from 1"),
        (PromptSize(True, 1), "prompt_length: got True"),
        (PromptSize(5000, 1), "prompt_length: got 5000"),
    ],
)
def test_sizes_out_of_bounds_are_refused(size, message):
    with pytest.raises(ValueError, match=message):
        add_prompts(MODELS["open_clip"](), "dcp", size)


def test_models_that_cannot_take_them_are_refused():
    model = MODELS["open_clip"]()
    add_prompts(model, "mmp", SIZE)
    with pytest.raises(ValueError, match="has prompts already"):
        add_prompts(model, "dcp", SIZE)
    resnet = open_clip.CLIP(embed_dim=32, vision_cfg={**VISION, "layers": [1, 1, 1, 1], "width": 8}, text_cfg=TEXT)
    with pytest.raises(ValueError, match="model: got towers that take no prompts: image "):
        add_prompts(resnet, "mmp", SIZE)
