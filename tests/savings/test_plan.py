"""Where towers are cut, why not, what is kept between calls, and what makes it stale."""

import copy
import pickle
from contextlib import nullcontext

import open_clip
import pytest
import torch

import mora
from mora.system.hooks import library_hook
from mora.towers import CutTower, recipe_of, towers_of
from tests.mora.models import IMAGE, VOCABULARY, images, open_clip_model
from tests.savings.worlds import FAMILIES, Samples, classifier

INDEX = torch.arange(6)
families = pytest.mark.parametrize("family", FAMILIES)


@families
def test_the_report(family):
    expected = [
        "image: blocks 0 to 1 of 4 frozen, last block for the pooled row only",
        "text: blocks 0 to 1 of 4 frozen, last block for the pooled row only, texts trimmed",
    ]
    if family == "siglip":
        expected = [
            "image: blocks 0 to 1 of 4 frozen",
            "image: no pooled: pooled by attention, which reads every token",
            "text: blocks 0 to 1 of 4 frozen, last block for the pooled row only",
            "text: no trimmed: attention is not causal: every token reads the padding",
        ]
    assert classifier(family).saved() == expected


def test_a_tower_that_needs_every_token_says_so():
    torch.manual_seed(0)
    vision = {"layers": 3, "width": 64, "head_width": 16, "patch_size": 8, "image_size": IMAGE, "pool_type": "avg"}
    text = {"layers": 3, "width": 48, "heads": 4, "vocab_size": VOCABULARY, "context_length": 16, "pool_type": "last"}
    clip = mora.patch(open_clip.CustomTextCLIP(embed_dim=32, vision_cfg=vision, text_cfg=text), last_layers=1)
    model = mora.MissingModalityClassifier(clip, 3, empty_text=torch.zeros(16, dtype=torch.int64))
    assert model.saved() == [
        "image: blocks 0 to 1 of 3 frozen",
        "image: no pooled: pooled by 'avg', which reads every token",
        "text: blocks 0 to 1 of 3 frozen, last block for the pooled row only",
        "text: no trimmed: pooled by 'last', which counts from the end of the context",
    ]
    plain = copy.deepcopy(model)
    plain.save(mora.Savings.none())
    text = torch.randint(1, 90, (3, 16))
    torch.testing.assert_close(model.eval()(images(), text), plain.eval()(images(), text), rtol=1e-5, atol=1e-5)


def test_a_tower_that_cannot_be_cut_runs_whole(monkeypatch):
    model, samples = classifier("open_clip"), Samples()
    kind = type(model.towers["image"])
    project = kind.project
    monkeypatch.setattr(kind, "project", lambda *given: 1.5 * project(*given))
    (line, _) = model.saved()
    assert line.startswith("image: runs from end to end: cut in two it gives another embedding")
    batch = samples.batch(INDEX)
    torch.testing.assert_close(model(*batch), classifier("open_clip", mora.Savings.none())(*batch))
    with pytest.raises(ValueError, match="image: rows past the frozen blocks cannot be had"):
        model.prefix("image", samples.image)
    with pytest.raises(ValueError, match="cache: image: cut in two"):
        mora.PrefixCache(model, samples)


def test_the_plan_follows_what_is_trained():
    clip = open_clip_model().requires_grad_(False)
    model = mora.MissingModalityClassifier(clip, 3)
    assert model.plan("image").first == 4
    mora.patch(clip, last_layers=1)
    assert model.plan("image").first == 3
    mora.unpatch(clip)
    mora.patch(clip, last_layers=3)
    assert model.plan("image").first == 1
    clip.visual.ln_pre.bias.requires_grad_(True)
    assert not model.plan("image").frozen
    assert model.plan("text").frozen


def evaluated(model, samples):
    with torch.no_grad():
        return model.eval()(*samples.batch(INDEX, samples.image.dtype))


def count(monkeypatch):
    """How many rows pass the trained blocks of each tower."""
    seen = {"image": 0, "text": 0}
    suffix = CutTower.suffix

    def spy(self, clip, hidden, *others):
        seen[self.modality] += len(hidden)
        return suffix(self, clip, hidden, *others)

    monkeypatch.setattr(CutTower, "suffix", spy)
    return seen


@families
@pytest.mark.parametrize("keep", [True, False])
def test_in_eval_a_missing_modality_costs_one_row_a_batch_or_in_all(family, keep, monkeypatch):
    model, samples = classifier(family).eval(), Samples()
    model.saved()
    seen = count(monkeypatch)
    image, text = (int(present[INDEX].sum()) for present in (samples.image_present, samples.text_present))
    with mora.keeping(model) if keep else nullcontext():
        for times in (1, 2, 3):
            evaluated(model, samples)
            rows = 1 if keep else times  # of texts; that of images is kept on the CPU under a checksum
            assert seen == {"image": times * image + 1, "text": times * text + rows}


@families
@pytest.mark.parametrize("change", ["adapter", "frozen", "merge", "disabled", "double", "optimizer"])
def test_kept_embeddings_are_never_stale(family, change):
    samples, model = Samples(), classifier(family)
    before = evaluated(model, samples)
    plain = classifier(family, mora.Savings.none())
    for one in (model, plain):
        with torch.no_grad():
            if change == "adapter":
                next(mora.adapter_parameters(one.model))[1].mul_(3)
            if change == "frozen":
                name = "visual.ln_post" if hasattr(one.model, "visual") else "vision_model.post_layernorm"
                one.model.get_submodule(name).weight.mul_(2)
            if change == "merge":
                next(mora.adapter_parameters(one.model))[1].mul_(3)
                mora.merge(one.model)
        if change == "double":
            one.double()
            samples.image = samples.image.double()
        if change == "optimizer":
            one.train()
            one(*samples.batch(INDEX)).square().sum().backward()
            torch.optim.SGD([p for p in one.parameters() if p.requires_grad], lr=0.1).step()
    if change == "disabled":
        with mora.disabled(model.model), mora.disabled(plain.model):
            found, expected = evaluated(model, samples), evaluated(plain, samples)
    else:
        found, expected = evaluated(model, samples), evaluated(plain, samples)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found.float(), before) or change in ("double", "merge")


def test_data_edits_need_forget_only_where_values_are_kept():
    samples, model, plain = Samples(), classifier("open_clip"), classifier("open_clip", mora.Savings.none())

    def edit():
        for one in (model, plain):
            next(mora.adapter_parameters(one.model))[1].data.mul_(3)

    def same():
        return torch.allclose(evaluated(model, samples), evaluated(plain, samples), rtol=1e-4, atol=1e-5)

    assert same()
    edit()
    assert same()
    with mora.keeping(model):
        assert same()
        edit()
        assert not same()
        mora.forget(model)
        assert same()


@families
def test_copies_and_pickles(family):
    samples, model = Samples(), classifier(family)
    expected = evaluated(model, samples)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(evaluated(other, samples), expected)


@families
def test_a_gradient_in_eval_is_not_taken_from_what_is_kept(family):
    samples, model = Samples(), classifier(family).eval()
    evaluated(model, samples)
    model(text=samples.text).square().sum().backward()
    image = {name: p.grad for name, p in mora.adapter_parameters(model.model) if "image" in name}
    assert all(gradient is not None and bool(gradient.any()) for gradient in image.values())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(rows=torch.zeros(3, 17, 48)), r"text: got tokens of shape None, expected \(3, 17\)"),
        (dict(rows=torch.zeros(3, 17, 48), tokens=torch.zeros(3, 4)), r"got tokens of shape \(3, 4\), expected"),
    ],
)
def test_wrong_rows_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        classifier("open_clip")(text=mora.Hidden(**given))


def test_options_are_checked():
    with pytest.raises(ValueError, match="pooled: got 1, expected True or False"):
        mora.Savings(pooled=1)
    with pytest.raises(ValueError, match="multiple: got 0"):
        mora.Savings(multiple=0)
    assert str(mora.Savings.parse("trimmed,pooled")) == "pooled,trimmed"
    assert mora.Savings.parse("all") == mora.Savings() and str(mora.Savings.none()) == "none"
    assert recipe_of(open_clip_model()).name == "open_clip"


def test_finding_the_plan_leaves_batch_statistics_as_they_were():
    model = open_clip_model().eval()
    norm = torch.nn.BatchNorm2d(64)
    model.visual.conv1 = torch.nn.Sequential(model.visual.conv1, norm)
    mora.patch(model, last_layers=1)
    classifier = mora.MissingModalityClassifier(model, 3).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    norm.eval()
    lines = classifier.saved()  # a patched model's frozen batch norms keep to their statistics: nothing is drawn
    assert not any("image: no cache" in line for line in lines), lines
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


@families
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_merged_model_runs_its_last_block_for_the_pooled_row_too(family, training):
    saving, plain = classifier(family), classifier(family, mora.Savings.none())
    samples = Samples()
    for model in (saving, plain):
        mora.merge(model.model).requires_grad_(False)
        model.train(training)
    pooled = [modality for modality in ("image", "text") if saving.plan(modality).pooled]
    lengths = {"image": [], "text": []}
    for modality, tower in towers_of(saving.model).items():
        spy = lambda _, given, seen=lengths[modality]: seen.append(given[0].shape[1])  # noqa: E731
        block = tower.slots(saving.model)[-1].parent
        block.mlp.register_forward_pre_hook(library_hook(spy))  # a user's own would want every row
    got, want = (model(samples.image, samples.text) for model in (saving, plain))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert all((seen[-1] == 1) == (modality in pooled) for modality, seen in lengths.items()), lengths
    assert pooled == {"siglip": ["text"], "own_blocks": []}.get(family, ["image", "text"])
    assert sum("last block for the pooled row only" in line for line in saving.saved()) == len(pooled)
    cache = mora.PrefixCache(saving, samples)
    cached = saving(cache.image(torch.arange(len(samples))), cache.text(torch.arange(len(samples))))
    torch.testing.assert_close(cached, want, rtol=1e-5, atol=1e-5)


@families
def test_hooks_of_the_last_block_fire_though_one_row_would_do(family):
    """Grad-CAM and attention rollout look at every row of the last blocks."""
    samples, model = Samples(), classifier(family)
    expected = evaluated(model, samples)
    block = model.towers["image"].blocks(model.model)[3]
    attention = next(module for name, module in block.named_children() if "attn" in name)
    seen = []
    hook = attention.register_forward_hook(lambda _, args, kwargs, output: seen.append(1), with_kwargs=True)
    other = block.register_full_backward_hook(lambda *_: seen.append(2))
    torch.testing.assert_close(evaluated(model, samples), expected, rtol=1e-4, atol=1e-5)
    assert 1 in seen
    model.train()(*samples.batch(INDEX)).sum().backward()
    assert 2 in seen
    hook.remove(), other.remove(), seen.clear()
    evaluated(model, samples)
    assert not seen


@families
@pytest.mark.parametrize("modality", ["image", "text"])
def test_hooks_before_a_cut_act_once_and_hooks_around_it_fire(family, modality):
    samples, model, plain = Samples(), classifier(family), classifier(family, mora.Savings.none())
    evaluated(model, samples)  # the plan is made
    double = lambda _, args, kwargs: ((2 * args[0], *args[1:]), kwargs)  # noqa: E731
    for one in (model, plain):
        entered = one.towers[modality].blocks(one.model)[2]
        entered.register_forward_pre_hook(double, with_kwargs=True)
    torch.testing.assert_close(evaluated(model, samples), evaluated(plain, samples), rtol=1e-4, atol=1e-5)
    seen = []
    model.towers[modality].around(model.model)[0].register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(evaluated(model, samples), evaluated(plain, samples), rtol=1e-4, atol=1e-5)
    assert seen
