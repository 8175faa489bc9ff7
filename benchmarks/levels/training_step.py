"""One training step of CLIP: both towers, a linear head, backward, AdamW; adapters as published, or in every layer.

Nothing is cached, no row lacks anything: this is the step a plain training loop takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import models
from benchmarks.case import Case, Provider, Shape
from benchmarks.levels.attention import kept
from benchmarks.models import Adapted
from benchmarks.providers import lora
from benchmarks.providers.ours import BACKENDS, why_not
from benchmarks.sizes import Scale
from mora_kernels.testing import assert_parity

NAME = "training_step"
TITLE = "One training step of CLIP, q and v adapted"
BASELINE = "official"
PROVIDERS = ("official", *lora.NAMES, "frozen + head", *BACKENDS)
CLASSES = 101
# Both towers in float32 against float64, relative L2; a gradient has passed through twelve blocks twice.
TOLERANCE = {torch.float32: 1e-4}


def shapes(scale: Scale) -> list[Shape]:
    """ViT-B/16 (and ViT-L/14 on a GPU), two layers as published and all of the smaller tower's."""
    names = ["toy"] if scale.smoke else ["ViT-B/16"] if scale.device == "cpu" else ["ViT-B/16", "ViT-L/14"]
    found = []
    for name in names:
        depth = min(models.SIZES[name].vision[2], models.SIZES[name].text[2])
        some, every = (min(2, depth - 1), (16, 32, 256)), (depth, (256,))
        for layers, batches in (some,) if scale.smoke else (some, every):
            found += [
                {"model": name, "library": "Hugging Face", "adapted_layers": layers, "batch": batch, "dropout": 0.1}
                for batch in scale.batches("model", batches)
                if batch > 1 or scale.device == "cuda"
            ]
    return found


def build(shape: Shape, scale: Scale) -> Case:
    """The case of one shape."""
    base = models.clip(shape["model"], shape["library"], scale.device)
    data = Data(base, shape["batch"], scale.device)
    layers = shape["adapted_layers"]
    providers, absent = {}, {}
    official = models.adapt(base, "official", layers)
    oracle = data.results(models.adapt(base, "official", layers), wide=True)
    providers["official"] = provider(official, data, lambda: oracle, scale)
    for name in lora.NAMES:
        if lora.ABSENT:
            absent[name] = lora.ABSENT
        else:
            adapted = models.adapt(base, name, layers)
            providers[name] = provider(adapted, data, merged(base, adapted, data), scale)
    frozen = models.adapt(base, "frozen", layers)
    providers["frozen + head"] = provider(frozen, data, merged(base, frozen, data), scale)
    for backend in BACKENDS:
        if reason := why_not(backend, scale):
            absent[backend] = reason
        else:
            adapted = models.adapt(base, "ours", layers, backend)
            providers[backend] = provider(adapted, data, lambda: oracle, scale)
    return Case(NAME, shape, BASELINE, providers, absent, square=models.SIZES[shape["model"]].vision[0])


class Data:
    """One batch, and the results on its first two rows that providers are compared by."""

    def __init__(self, base: nn.Module, batch: int, device: str) -> None:
        self.image, self.text = models.inputs(base, batch, device)
        self.labels = torch.arange(batch, device=device) % CLASSES
        width = models.embeddings(base, self.image[:1], self.text[:1]).shape[1]
        self.head = nn.Linear(width, CLASSES, device=device)

    def results(self, adapted: Adapted, wide: bool = False) -> dict[str, Tensor]:
        """Logits and the gradient of every adapter, by name, without dropout; `wide` in float64 (spoils the model)."""
        model, head, image = adapted.model.eval(), self.head, self.image[:2]
        weight, bias = head.weight.detach(), head.bias.detach()
        if wide:
            model.double()
            weight, bias, image = weight.double(), bias.double(), image.double()
        logits = F.linear(models.embeddings(model, image, self.text[:2]), weight, bias)
        named = {"logits": logits.detach()}
        if trained := adapted.trained:
            loss = F.cross_entropy(logits, self.labels[:2])
            named |= dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))
        model.train()
        return named


def merged(base: nn.Module, adapted: Adapted, data: Data) -> Callable[[], dict[str, Tensor]]:
    """The logits of a plain CLIP that holds the adapted weights by their own formula, in float64."""
    return lambda: data.results(models.adapt(models.with_weights(base, adapted.formula()), "frozen", 1), wide=True)


def provider(adapted: Adapted, data: Data, want: Callable[[], dict[str, Tensor]], scale: Scale) -> Provider:
    """A provider from an adapted CLIP: the whole step."""
    model: Any = adapted.model.train()
    head = nn.Linear(data.head.in_features, CLASSES, device=scale.device)
    trained = [*adapted.trained.values(), *head.parameters()]
    # A learning rate at which the timed steps leave every provider finite.
    optimizer = torch.optim.AdamW(trained, lr=1e-6, betas=(0.9, 0.98), capturable=scale.device == "cuda")

    def run() -> None:
        with torch.autocast(scale.device, dtype=torch.float16, enabled=scale.device == "cuda"):
            loss = F.cross_entropy(head(models.embeddings(model, data.image, data.text)).float(), data.labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def check() -> None:
        expected = want()
        for name, value in data.results(adapted).items():
            if name in expected:
                assert_parity(name, value, expected[name], TOLERANCE)

    owned = (data.image, data.text, *head.parameters(), *model.parameters())
    return Provider(run, check, lambda: owned, lambda: kept(model))
