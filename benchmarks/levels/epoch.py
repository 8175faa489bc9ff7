"""One epoch on the built-in data: the tiny CLIP on 2,294 drawings and names, 70 % of the rows missing one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import mora
from benchmarks import models
from benchmarks.case import Case, Provider, Shape
from benchmarks.levels.attention import kept
from benchmarks.models import Adapted
from benchmarks.providers import lora
from benchmarks.providers.ours import BACKENDS, why_not
from benchmarks.sizes import Scale
from mora.data.missing import IMAGE_MISSING, TEXT_MISSING, missing_table
from mora_kernels.testing import assert_parity

NAME = "epoch"
TITLE = "One epoch on the built-in data"
BASELINE = "official"
PROVIDERS = ("official", lora.PACKED, "frozen + head", *BACKENDS)
RATE = 0.7
TOLERANCE = {torch.float32: 1e-4}


def shapes(scale: Scale) -> list[Shape]:
    """The whole training part; a few rows of it in a smoke test."""
    from mora.data.sources import openmoji

    rows = sum(row.split == "train" for row in openmoji.table())
    rows, batch, layers = (8, 4, 1) if scale.smoke else (rows, 32, 2)
    return [{"model": "tiny", "rows": rows, "batch": batch, "adapted_layers": layers, "missing": RATE, "dropout": 0.1}]


def build(shape: Shape, scale: Scale) -> Case:
    """The only case."""
    from mora import tiny

    base, preprocess, tokenizer = tiny.load()
    base = base.to(scale.device)
    data = Data(shape["rows"], shape["batch"], preprocess, tokenizer, scale.device)
    layers = shape["adapted_layers"]
    oracle = data.results(models.adapt(base, "official", layers), wide=True)
    providers, absent = {}, {}
    providers["official"] = provider(models.adapt(base, "official", layers), data, lambda: oracle)
    if lora.ABSENT:
        absent[lora.PACKED] = lora.ABSENT
    else:
        adapted = models.adapt(base, lora.PACKED, layers)
        plain = models.adapt(models.with_weights(base, adapted.formula()), "frozen", layers)
        results = data.results(plain, wide=True)
        providers[lora.PACKED] = provider(adapted, data, lambda: results)
    frozen = models.adapt(base, "frozen", layers)
    alone = data.results(copy.deepcopy(frozen), wide=True)
    providers["frozen + head"] = provider(frozen, data, lambda: alone)
    for backend in BACKENDS:
        if reason := why_not(backend, scale) or too_slow(backend, scale):
            absent[backend] = reason
        else:
            providers[backend] = provider(models.adapt(base, "ours", layers, backend), data, lambda: oracle)
    return Case(NAME, shape, BASELINE, providers, absent)


def too_slow(backend: str, scale: Scale) -> str:
    """Why a backend that can run is left out, or an empty string."""
    interpreted = backend == "triton" and scale.device == "cpu"
    return "Triton's interpreter takes minutes for the tiny CLIP; the other levels check it" if interpreted else ""


class Data:
    """The rows on the device, and which of them lack what."""

    def __init__(self, rows: int, batch: int, preprocess: Any, tokenizer: Any, device: str) -> None:
        from mora.data.sources import openmoji

        samples = openmoji.load("train", progress=True)
        self.image = preprocess(samples.images[:rows]).to(device)
        self.text, self.labels = tokenizer(samples.texts[:rows]).to(device), samples.labels[:rows].to(device)
        self.classes, self.batch = len(samples.classes), batch
        self.table = missing_table(rows, RATE, "both", seed=0).to(device)

    def classifier(self, adapted: Adapted) -> mora.MissingModalityClassifier:
        """The library's classifier, with the same head for everybody."""
        made = mora.MissingModalityClassifier(adapted.model, self.classes, savings=mora.Savings.none())
        with torch.no_grad():
            for name, value in made.head.named_parameters():
                generator = torch.Generator().manual_seed(2)  # in float32 whatever the model's dtype
                value.copy_(torch.randn(value.shape, generator=generator) * (0.02 if name == "weight" else 0.0))
        return made

    def loss(self, classifier: mora.MissingModalityClassifier, rows: slice) -> Tensor:
        """Mean cross-entropy of some rows, with what they lack missing."""
        table, image = self.table[rows], self.image[rows].to(classifier.head.weight.dtype)
        logits = classifier(image, self.text[rows], table != IMAGE_MISSING, table != TEXT_MISSING)
        return F.cross_entropy(logits.float() if logits.dtype == torch.float16 else logits, self.labels[rows])

    def results(self, adapted: Adapted, wide: bool = False) -> dict[str, Tensor]:
        """Loss and the gradient of every adapter on eight rows, without dropout; `wide` in float64."""
        classifier = self.classifier(adapted).eval()
        if wide:
            classifier.double()
        loss = self.loss(classifier, slice(0, 8))
        trained = adapted.trained
        gradients = torch.autograd.grad(loss, list(trained.values())) if trained else ()
        return {"loss": loss.detach(), **dict(zip(trained, gradients, strict=True))}


def provider(adapted: Adapted, data: Data, want: Callable[[], dict[str, Tensor]]) -> Provider:
    """A provider from an adapted CLIP: every batch of the epoch once, in order."""
    classifier = data.classifier(adapted).train()
    device = data.image.device.type
    trained = [*adapted.trained.values(), *classifier.head.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, betas=(0.9, 0.98), weight_decay=0.02)

    def step(start: int) -> None:
        with torch.autocast(device, dtype=torch.float16, enabled=device == "cuda"):
            loss = data.loss(classifier, slice(start, start + data.batch))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def run() -> None:
        for start in range(0, len(data.labels), data.batch):
            step(start)

    def check() -> None:
        expected = want()
        for name, value in data.results(adapted).items():
            if name in expected:
                assert_parity(name, value, expected[name], TOLERANCE)
        classifier.train()

    return Provider(
        run,
        check,
        observed=lambda: step(0),
        owned=lambda: tuple(classifier.parameters()),
        kept=lambda: kept(adapted.model),
        capturable=False,
    )
