"""Inference of ViT-B/16: plain CLIP, patched, merged, beside deep prompts.

What rows that lack something cost is timed by the level `savings`, where seven rows in ten are a whole number.
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
TITLE = "Inference of CLIP"
BASELINE = "plain CLIP"
PROMPTED = 0.7  # of the rows lack something: their prompts are others, and none is left out
# Those that are ours run within `mora.keeping`, but for "rebuilt".
PROVIDERS = (BASELINE, "deep prompts", "patched, rebuilt each time", "patched", "merged")


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
        "patched, rebuilt each time": provider(lambda: rows.logits(patched), lambda: rows.logits(official)),
        "patched": provider(within_keeping(kept, lambda: rows.logits(kept)), lambda: rows.logits(official)),
        "merged": provider(within_keeping(merged, lambda: rows.logits(merged)), lambda: rows.logits(official)),
    }
    return Case(NAME, shape, BASELINE, providers)


class Rows:
    """The samples of one case, which of them lack what where that changes a prompt, and one head for all."""

    def __init__(self, base: nn.Module, batch: int, device: str) -> None:
        self.image, self.text = models.inputs(base, batch, device)
        width = models.embeddings(base, self.image[:1], self.text[:1]).shape[1]
        self.head = nn.Linear(width, CLASSES, device=device).requires_grad_(False)
        self.table = missing_table(batch, PROMPTED, "both", seed=0).to(device)
        self.white, self.empty = (tower.substitute(base).to(device) for tower in towers_of(base).values())

    def classifier(self, model: nn.Module) -> mora.MissingModalityClassifier:
        """The library's own classifier around a CLIP, in eval mode, with the shared head."""
        made = mora.MissingModalityClassifier(model, CLASSES).eval()
        made.head.load_state_dict(self.head.state_dict())
        return made

    def logits(self, classifier: mora.MissingModalityClassifier) -> Tensor:
        """Logits [B, C] of rows that lack nothing."""
        return classifier(self.image.to(classifier.head.weight.dtype), self.text)

    def everything(self, classifier: mora.MissingModalityClassifier) -> Tensor:
        """Logits by both towers on every row, without the library's classifier."""
        image = self.image.to(classifier.head.weight.dtype)
        return classifier.head(models.embeddings(classifier.model, image, self.text))

    def prompted(self, model: PromptedCLIP) -> Tensor:
        """Logits of a prompted CLIP, every row with the prompts of what it lacks at 70 %, substitutes in its place."""
        kind = self.table.long()
        image = torch.where((kind == IMAGE_MISSING)[:, None, None, None], self.white, self.image)
        text = torch.where((kind == TEXT_MISSING)[:, None], self.empty, self.text)
        return self.head(torch.cat([model.encode_image(image, kind), model.encode_text(text, kind)], dim=-1))

    def prompted_one_by_one(self, model: PromptedCLIP) -> Tensor:
        """The same, a row after another by another path through the blocks."""
        kind: Any = self.table.long().tolist()
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
