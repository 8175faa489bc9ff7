"""Small classifiers with trained-like adapters, and samples of which every third lacks something."""

import torch

import mora
from tests.mora.models import IMAGE, MODELS, randomise, short_tokens

FAMILIES = tuple(MODELS)
CLASSES = 5


def short_texts(count, seed=2, longest=6):
    """Texts that end at places of their own, then padding."""
    return short_tokens([2 + (row * 5) % (longest - 1) for row in range(count)], seed)


def images(count, seed=1):
    return torch.randn(count, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(seed))


def classifier(family, savings=None, dropout=0.0, double=False, seed=0, **options):
    """A classifier whose CLIP is the same for the same arguments, whatever is saved."""
    model = MODELS[family]().requires_grad_(False)
    options = {"alpha": 0.05, "targets": ("q", "v"), "last_layers": 2, **options}
    torch.manual_seed(seed)
    randomise(mora.patch(model, dropout=dropout, **options))
    torch.manual_seed(seed + 1)
    made = mora.MissingModalityClassifier(model, CLASSES, savings=savings)
    return made.double() if double else made


class Samples(torch.utils.data.Dataset):
    """What a cache reads; it counts how often."""

    def __init__(self, count=12, seed=1):
        self.image, self.text, self.labels = (
            images(count, seed),
            short_texts(count, seed),
            torch.arange(count) % CLASSES,
        )
        self.image_present, self.text_present = torch.arange(count) % 3 != 1, torch.arange(count) % 3 != 2
        self.reads = 0

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        self.reads += 1
        return {"image": self.image[index], "text": self.text[index]}

    def batch(self, index, dtype=torch.float32):
        image_present, text_present = self.image_present[index], self.text_present[index]
        return self.image[index].to(dtype), self.text[index], image_present, text_present

    def cached(self, cache, index):
        image_present, text_present = self.image_present[index], self.text_present[index]
        hidden = cache.image(index, image_present), cache.text(index, text_present)
        return *hidden, image_present, text_present


def results(model, batch, labels, seed=3):
    """Loss, logits and the gradient of everything trained, by name."""
    torch.manual_seed(seed)
    logits = model(*batch)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()))
    return {"loss": loss.detach(), "logits": logits.detach(), **dict(zip(named, found, strict=True))}


def same(actual, expected, tolerance):
    """Every result by its name: bit for bit at 0, else relative L2.

    In float32 a gradient in which nearly everything cancels is judged beside a hundredth of the whole gradient; in
    float64 nothing is.
    """
    assert actual.keys() == expected.keys()
    gradients = [value.double() for name, value in expected.items() if name not in ("loss", "logits")]
    whole = torch.stack([value.norm() for value in gradients]).norm()
    floor = 0.01 * whole if expected["loss"].dtype == torch.float32 else 0.0
    for name, value in expected.items():
        if tolerance == 0:
            assert torch.equal(actual[name], value), name
            continue
        size = value.double().norm() if name in ("loss", "logits") else max(value.double().norm(), floor)
        error = (actual[name] - value).double().norm() / max(float(size), 1e-12)
        assert error <= tolerance, f"{name}: {float(error):.1e}"
    assert any(bool(value.abs().max() > 0) for value in expected.values())
