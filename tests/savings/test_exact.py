"""Every saving on equals it off: losses, logits and the gradient of every adapter, in both families."""

import pytest
import torch

import mora
from mora.savings.options import PARTS
from tests.mora.models import MODELS
from tests.savings.worlds import FAMILIES, Samples, classifier, results, same

families = pytest.mark.parametrize("family", FAMILIES)
modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
INDEX = torch.arange(6)
OFF = mora.Savings.none()


@families
@modes
def test_each_saving_changes_nothing_but_rounding(family, training):
    """Relative 1e-5 in float32; 1e-10 in float64, where nothing but a mistake could hide."""
    samples = Samples()
    for double, tolerance, parts in ((False, 1e-5, ["all"]), (True, 1e-10, [*PARTS, "all"])):
        batch, labels = samples.batch(INDEX, torch.float64 if double else torch.float32), samples.labels[INDEX]
        model = classifier(family, OFF, double=double).train(training)
        expected = results(model, batch, labels)
        for part in parts:
            model.save(mora.Savings.parse(part))
            same(results(model, batch, labels), expected, tolerance)


@families
@modes
def test_whole_batches_of_one_modality(family, training):
    samples = Samples()
    image, text, _, _ = samples.batch(INDEX)
    off, on = (classifier(family, savings).train(training) for savings in (OFF, None))
    for batch in ((None, text), (image, None), (image, text)):
        labels = samples.labels[INDEX]
        same(results(on, batch, labels), results(off, batch, labels), 1e-5)


@families
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@modes
def test_the_exact_cache_is_bit_for_bit(family, dropout, training):
    """The same rows, computed in the same batch, give the same bits and draw the same masks."""
    samples = Samples()
    complete = torch.ones(len(INDEX), dtype=torch.bool)
    # In eval open_clip's blocks take a fused path of PyTorch's that rounds otherwise; rows are those of training.
    off = OFF if training or not hasattr(MODELS[family](), "visual") else mora.Savings.parse("pooled")
    model = classifier(family, off, dropout).train(training)
    image, text, _, _ = samples.batch(INDEX)
    labels = samples.labels[INDEX]
    expected = results(model, (image, text), labels)
    cached = classifier(family, off, dropout).train(training)
    cache = mora.PrefixCache(cached, samples)
    cache.fill(batch=len(INDEX))
    same(results(cached, (cache.image(INDEX), cache.text(INDEX), complete, complete), labels), expected, 0)


@families
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_exact_cache_with_missing_rows(family, dropout):
    """With dropout and the same seed: every row draws its own masks, present or not."""
    samples, savings = Samples(), mora.Savings.parse("missing")
    batch, labels = samples.batch(INDEX), samples.labels[INDEX]
    expected = results(classifier(family, OFF, dropout).train(), batch, labels)
    model = classifier(family, savings, dropout).train()
    same(results(model, batch, labels), expected, 1e-5)
    cache = mora.PrefixCache(model, samples, samples.image_present, samples.text_present)
    same(results(model, samples.cached(cache, INDEX), labels), expected, 1e-5)


@families
@modes
def test_the_cache_with_everything_on(family, training):
    samples = Samples()
    expected = results(classifier(family, OFF).train(training), samples.batch(INDEX), samples.labels[INDEX])
    model = classifier(family).train(training)
    cache = mora.PrefixCache(model, samples, samples.image_present, samples.text_present)
    for _ in range(2):
        same(results(model, samples.cached(cache, INDEX), samples.labels[INDEX]), expected, 1e-5)


@families
def test_half_precision_rows_are_near(family):
    samples = Samples()
    model = classifier(family)
    expected = model.eval()(*samples.batch(INDEX)).detach()
    for dtype, tolerance in ((torch.float16, 3e-3), (torch.bfloat16, 3e-2)):
        cache = mora.PrefixCache(model, samples, dtype=dtype)
        logits = model(*samples.cached(cache, INDEX)).detach()
        assert 0 < (logits - expected).norm() / expected.norm() < tolerance


@families
def test_missing_rows_in_eval_are_bit_for_bit(family):
    """A row that is there: as alone with the others that are; one that is not: as the substitute on its own."""
    samples, model = Samples(), classifier(family, mora.Savings.parse("missing")).eval()
    image, text, image_present, text_present = samples.batch(INDEX)
    plain = classifier(family, OFF).eval()
    with torch.no_grad():
        for modality, given, present in (("image", image, image_present), ("text", text, text_present)):
            substitute = model.substitute(modality)
            tower = plain.towers[modality]
            expected = torch.empty(len(INDEX), tower.width(model.model))
            expected[present], expected[~present] = (
                tower.encode(plain.model, given[present]),
                tower.encode(plain.model, substitute[None]),
            )
            for _ in range(2):
                found = model.runners[modality].embed(model.model, given, present, substitute, training=False)
                assert torch.equal(found, expected)


@families
@pytest.mark.parametrize("part", ["pooled", "trimmed", "all"])
def test_the_same_masks_give_the_same_numbers(family, part, monkeypatch):
    """Fewer rows draw fewer masks, so masks are fixed here: each is a function of projection, sample and token."""
    from mora_kernels.torch import group

    seen = {}

    def drop(self, x, p, count, dtype, mask=None):
        generator = torch.Generator().manual_seed(count)
        full = torch.rand(count, 6, 32, x.shape[-1], generator=generator) >= p
        tokens = x.shape[1]
        if tokens == 1:
            ends = seen[x.shape[-1]]
            masks = full[:, torch.arange(6), ends][:, :, None]
        else:
            masks = full[:, :, :tokens]
        return (x * masks / (1 - p)).to(dtype)

    samples = Samples()
    samples.text[:, :] = samples.text[:1]
    ends = int(samples.text[0].argmax())
    seen.update({64: torch.zeros(6, dtype=torch.int64), 48: torch.full((6,), ends)})
    monkeypatch.setattr(group.Engine, "drop", drop)
    image, text, _, _ = samples.batch(INDEX)
    # one target, so that the last block's only adapted projection drops alone with either path
    options = dict(dropout=0.3, targets=("v",))
    expected = results(classifier(family, OFF, **options).train(), (image, text), samples.labels[INDEX])
    model = classifier(family, mora.Savings.parse(part), **options).train()
    same(results(model, (image, text), samples.labels[INDEX]), expected, 1e-5)
