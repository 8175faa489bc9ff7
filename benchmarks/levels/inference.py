"""Inference of ViT-B/16: plain CLIP, patched, merged, with a share of the rows missing a modality, beside deep prompts.

Plain CLIP runs both towers on every row, a missing one replaced by its substitute: what it costs not to know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mora
from benchmarks import models
from benchmarks.case import Case, Provider, Shape
from benchmarks.levels.training_step import CLASSES, TOLERANCE
from benchmarks.providers.ours import why_not, within_keeping
from benchmarks.providers.prompts import PromptedCLIP, embed_row
from benchmarks.sizes import Scale
from mora.data.missing import IMAGE_MISSING, TEXT_MISSING, missing_table
from mora.towers import towers_of
from mora_kernels.testing import assert_parity

NAME = "inference"
TITLE = "Inference of CLIP with missing rows"
BASELINE = "plain CLIP"
RATES = (0.0, 0.35, 0.7)
NOT_KEPT = "merged, 70% missing, nothing kept"  # the others that are ours run within `mora.keeping`, but for "rebuilt"
PROVIDERS = (
    BASELINE,
    "deep prompts",
    "patched, rebuilt each time",
    "patched",
    *(f"merged, {rate:.0%} missing" for rate in RATES),
    NOT_KEPT,
)


def shapes(scale: Scale) -> list[Shape]:
    """ViT-B/16 at a large batch, which on a CPU leaves eight rows."""
    name, batches = ("toy", [6]) if scale.smoke else ("ViT-B/16", scale.batches("model", (1024,)))
    return [{"model": name, "library": "Hugging Face", "batch": batch} for batch in batches]


def build(shape: Shape, scale: Scale) -> Case:
    """The case of one shape."""
    base = models.clip(shape["model"], shape["library"], scale.device)
    rows = Rows(base, shape["batch"], scale.device)
    backend = "triton" if scale.device == "cuda" and not why_not("triton", scale) else "torch"
    official = rows.classifier(models.adapt(base, "official", 2).model.double())
    merged = rows.classifier(mora.merge(models.adapt(base, "ours", 2, backend).model))
    patched = rows.classifier(models.adapt(base, "ours", 2, backend).model)
    kept = rows.classifier(models.adapt(base, "ours", 2, backend).model)
    frozen = models.adapt(base, "frozen", 2).model
    plain, wide = rows.classifier(frozen), rows.classifier(models.with_weights(base, {}))

    def provider(run: Callable[[], Tensor], oracle: Callable[[], Tensor]) -> Provider:
        def check() -> None:
            with torch.inference_mode():
                assert_parity("logits", run(), oracle(), TOLERANCE)

        def timed() -> Tensor:
            with torch.inference_mode(), torch.autocast(scale.device, torch.float16, scale.device == "cuda"):
                return run()

        return Provider(timed, check)

    prompted = PromptedCLIP(models.adapt(base, "frozen", 2).model).to(scale.device).eval()
    providers = {
        BASELINE: provider(lambda: rows.everything(plain), lambda: rows.everything(wide)),
        "deep prompts": provider(lambda: rows.prompted(prompted), lambda: rows.prompted_one_by_one(prompted)),
        "patched, rebuilt each time": provider(lambda: rows.logits(patched, 0.0), lambda: rows.logits(official, 0.0)),
        "patched": provider(within_keeping(kept, lambda: rows.logits(kept, 0.0)), lambda: rows.logits(official, 0.0)),
    }
    for rate in RATES:
        providers[f"merged, {rate:.0%} missing"] = provider(
            within_keeping(merged, lambda rate=rate: rows.logits(merged, rate)),
            lambda rate=rate: rows.logits(official, rate),
        )
    providers[NOT_KEPT] = provider(lambda: rows.logits(merged, 0.7), lambda: rows.logits(official, 0.7))
    return Case(NAME, shape, BASELINE, providers)


class Rows:
    """The samples of one case, which of them lack what at each rate, and one head for all."""

    def __init__(self, base: nn.Module, batch: int, device: str) -> None:
        self.image, self.text = models.inputs(base, batch, device)
        width = models.embeddings(base, self.image[:1], self.text[:1]).shape[1]
        self.head = nn.Linear(width, CLASSES, device=device).requires_grad_(False)
        self.tables = {rate: missing_table(batch, rate, "both", seed=0).to(device) for rate in RATES}
        self.white, self.empty = (tower.substitute(base).to(device) for tower in towers_of(base).values())

    def classifier(self, model: nn.Module) -> mora.MissingModalityClassifier:
        """The library's own classifier around a CLIP, in eval mode, with the shared head."""
        made = mora.MissingModalityClassifier(model, CLASSES).eval()
        made.head.load_state_dict(self.head.state_dict())
        return made

    def logits(self, classifier: mora.MissingModalityClassifier, rate: float) -> Tensor:
        """Logits [B, C] with a share of the rows missing one modality."""
        table, image = self.tables[rate], self.image.to(classifier.head.weight.dtype)
        return classifier(image, self.text, table != IMAGE_MISSING, table != TEXT_MISSING)

    def everything(self, classifier: mora.MissingModalityClassifier) -> Tensor:
        """Logits by both towers on every row, without the library's classifier."""
        image = self.image.to(classifier.head.weight.dtype)
        return classifier.head(models.embeddings(classifier.model, image, self.text))

    def prompted(self, model: PromptedCLIP) -> Tensor:
        """Logits of a prompted CLIP, every row with the prompts of what it lacks at 70 %, substitutes in its place."""
        kind = self.tables[0.7].long()
        image = torch.where((kind == IMAGE_MISSING)[:, None, None, None], self.white, self.image)
        text = torch.where((kind == TEXT_MISSING)[:, None], self.empty, self.text)
        return self.head(torch.cat([model.encode_image(image, kind), model.encode_text(text, kind)], dim=-1))

    def prompted_one_by_one(self, model: PromptedCLIP) -> Tensor:
        """The same, a row after another by another path through the blocks."""
        kind: Any = self.tables[0.7].long().tolist()
        embedded = [
            embed_row(
                model,
                self.white if lacks == IMAGE_MISSING else image,
                self.empty if lacks == TEXT_MISSING else text,
                lacks,
            )
            for image, text, lacks in zip(self.image, self.text, kind, strict=True)
        ]
        return F.linear(torch.stack(embedded), self.head.weight, self.head.bias)
