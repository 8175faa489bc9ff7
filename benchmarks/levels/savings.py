"""What is not computed: a training step of ViT-B/16 (Food-101's recipe), inference with missing rows, an epoch.

Every provider does the same rows with the same 70 % of them missing a modality; texts end after 6 to 24 tokens, as a
title may. "Nothing saved" runs both towers from end to end on every row; "cached" has passed the frozen blocks before
the clock starts, as every epoch but the first has.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mora
from benchmarks import models, trained
from benchmarks.case import Case, Provider, Shape
from benchmarks.levels.attention import kept
from benchmarks.providers import lora
from benchmarks.providers.ours import why_not, within_keeping
from benchmarks.sizes import DROPOUT, Scale
from mora.data.missing import IMAGE_MISSING, TEXT_MISSING, missing_table
from mora.methods.linear import MoraLinear
from mora.towers import towers_of
from mora_kernels.testing import assert_parity

NAME = "savings"
TITLE = "What need not be computed"
STEP, INFERENCE, EPOCH = "training step", "inference", "epoch of mora train"
OFF, CACHED = "patched, nothing saved", "patched, all, cached"
ALONE = "patched, all, nothing kept"  # the others that are ours run within `mora.keeping`
PARTS = {f"patched, {part} only": mora.Savings.parse(part) for part in ("pooled", "missing", "trimmed", "lean")}
STEP_PROVIDERS = ("official", OFF, *PARTS, "patched, cached only", "patched, all", ALONE, CACHED)
PLAIN = "plain CLIP"
KINDS = {"patched, 70 % both missing": "both", "patched, 70 % image missing": "image"}
NOT_KEPT = {f"{name}, nothing kept": kind for name, kind in KINDS.items()}
PROVIDERS = (*dict.fromkeys((*STEP_PROVIDERS, PLAIN, *KINDS, *NOT_KEPT, *trained.FIELDS)),)
CLASSES, RATE, LONGEST = 101, 0.7, 24
# Both towers in float32 against float64, relative L2; a gradient has passed through twelve blocks twice.
TOLERANCE = {torch.float32: 1e-4}


def shapes(scale: Scale) -> list[Shape]:
    """A step at batch 8 and inference at 20 on a CPU: seven rows in ten are whole numbers there; larger on a GPU."""
    name = "toy" if scale.smoke else "ViT-B/16"
    step, inference = (8, 10) if scale.smoke else (8, 20) if scale.device == "cpu" else (256, 1000)
    common = {"library": "Hugging Face", "missing": RATE}
    epochs: list[Shape] = [{"model": "tiny", "rows": 24 if scale.smoke else 640, "batch": 32}]
    if not scale.smoke:
        rows, batch = (16, 8) if scale.device == "cpu" else (1024, 256)
        epochs.append({"model": name, "rows": rows, "batch": batch})
    return [
        {"work": STEP, "model": name, **common, "batch": step, "dropout": DROPOUT},
        {"work": INFERENCE, "model": name, **common, "batch": inference},
        *({"work": EPOCH, "missing": RATE, "dropout": DROPOUT, **each} for each in epochs),
    ]


def build(shape: Shape, scale: Scale) -> Case:
    """The case of one shape."""
    if shape["work"] == EPOCH:
        return epoch(shape, scale)
    base = models.clip(shape["model"], shape["library"], scale.device)
    rows = Rows(base, shape["batch"], scale.device)
    return step(shape, scale, base, rows) if shape["work"] == STEP else inference(shape, scale, base, rows)


def backend_of(scale: Scale) -> str:
    """What computes the adapters."""
    return "triton" if scale.device == "cuda" and not why_not("triton", scale) else "torch"


class Rows:
    """One batch of samples, which of them lack what under each kind of missing table, and one head for all."""

    def __init__(self, base: nn.Module, batch: int, device: str) -> None:
        towers = towers_of(base)
        self.image, self.text = models.inputs(base, batch, device)
        size, context = towers["text"].vocabulary(base)
        ends = 6 + torch.arange(batch) * 5 % (min(LONGEST, context) - 6)
        for row, end in enumerate(ends.tolist()):
            self.text[row, end:] = size - 1
        self.labels = torch.arange(batch, device=device) % CLASSES
        width = sum(tower.width(base) for tower in towers.values())
        self.head = nn.Linear(width, CLASSES, device=device)
        self.tables = {kind: missing_table(batch, RATE, kind, seed=0).to(device) for kind in ("both", "image")}
        self.device = device

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.image[index], "text": self.text[index]}

    def classifier(self, model: nn.Module, savings: mora.Savings) -> mora.MissingModalityClassifier:
        """The library's classifier around a CLIP with the shared head."""
        made = mora.MissingModalityClassifier(model, CLASSES, savings=savings)
        made.head.load_state_dict(self.head.state_dict())
        return made

    def flags(self, kind: str) -> tuple[Tensor, Tensor]:
        """(image present, text present) under one kind of table."""
        table = self.tables[kind]
        return table != IMAGE_MISSING, table != TEXT_MISSING


def step(shape: Shape, scale: Scale, base: nn.Module, rows: Rows) -> Case:
    """A training step: the official sequence of operations, nothing saved, each saving alone, all."""
    oracle = results(rows.classifier(models.adapt(base, "official", layers(shape)).model.double(), OFFS), rows)
    kinds: dict[str, tuple[str, mora.Savings, bool]] = {
        "official": ("official", OFFS, False),
        OFF: ("ours", OFFS, False),
        **{name: ("ours", part, False) for name, part in PARTS.items()},
        "patched, cached only": ("ours", OFFS, True),
        "patched, all": ("ours", mora.Savings(), False),
        ALONE: ("ours", mora.Savings(), False),
        CACHED: ("ours", mora.Savings(), True),
    }
    providers = {}
    for name, (adapted, savings, cached) in kinds.items():
        model = models.adapt(base, adapted, layers(shape), backend_of(scale)).model
        providers[name] = step_provider(rows.classifier(model, savings), rows, cached, oracle, name != ALONE)
    return Case(NAME, shape, "official", providers, others(providers))


OFFS = mora.Savings.none()


def layers(shape: Shape) -> int:
    """Adapted blocks: two, as published; one of a toy's two."""
    return 1 if shape["model"] == "toy" else 2


def others(providers: Iterable[str]) -> dict[str, str]:
    """Why the rest of this level's providers does not run here."""
    return {name: "belongs to another kind of work" for name in PROVIDERS if name not in providers}


def given(model: mora.MissingModalityClassifier, rows: Rows, cache: mora.PrefixCache | None) -> tuple[Any, ...]:
    """The arguments of the classifier: inputs, or rows that passed the frozen blocks."""
    flags = rows.flags("both")
    if cache is None:
        return rows.image.to(model.head.weight.dtype), rows.text, *flags
    index = torch.arange(len(rows))
    hidden = (cache.take(modality, index, there) for modality, there in zip(("image", "text"), flags, strict=True))
    return *(each.to(rows.device) for each in hidden), *flags


def results(
    model: mora.MissingModalityClassifier, rows: Rows, cache: mora.PrefixCache | None = None
) -> dict[str, Tensor]:
    """Logits and the gradient of every adapter, by name, in training mode without dropout."""
    projections = [module for module in model.modules() if isinstance(module, MoraLinear)]
    before = [projection.dropout for projection in projections]
    for projection in projections:
        projection.dropout = 0.0
    model.train()
    logits = F.linear(model_features(model, rows, cache), *(p.detach() for p in model.head.parameters()))
    loss = F.cross_entropy(logits, rows.labels)
    trained = {name: p for name, p in model.model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(trained.values()))
    for projection, dropout in zip(projections, before, strict=True):
        projection.dropout = dropout
    return {"logits": logits.detach(), **dict(zip(trained, found, strict=True))}


def model_features(model: mora.MissingModalityClassifier, rows: Rows, cache: mora.PrefixCache | None) -> Tensor:
    """[image; text] [B, 2 e] in the head's dtype."""
    image, text, *flags = given(model, rows, cache)
    return model.embed({"image": image, "text": text}, dict(zip(("image", "text"), flags, strict=True)))


def step_provider(
    model: mora.MissingModalityClassifier, rows: Rows, cached: bool, oracle: dict[str, Tensor], keep: bool = False
) -> Provider:
    """A whole step: rows, forward, backward, AdamW; `keep`: all steps within one `mora.keeping`."""
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, betas=(0.9, 0.98), capturable=rows.device == "cuda")
    half = torch.autocast(rows.device, dtype=torch.float16, enabled=rows.device == "cuda")
    cache = None
    if cached:
        with half:
            cache = mora.PrefixCache(model, rows, *(flag.cpu() for flag in rows.flags("both")))
            cache.fill(batch=len(rows))

    def run() -> None:
        with torch.autocast(rows.device, dtype=torch.float16, enabled=rows.device == "cuda"):
            loss = F.cross_entropy(model(*given(model, rows, cache)).float(), rows.labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def check() -> None:
        for name, value in results(model, rows, cache).items():
            assert_parity(name, value, oracle[name], TOLERANCE)

    owned = (rows.image, rows.text, *model.parameters(), model.missing_image)
    whole = within_keeping(model, run) if keep else run
    return Provider(whole, check, lambda: owned, lambda: kept(model.model), capturable=False)


def inference(shape: Shape, scale: Scale, base: nn.Module, rows: Rows) -> Case:
    """Plain CLIP on every row, substitutes in the place of what is missing; ours with rows missing."""
    frozen, wide = models.adapt(base, "frozen", layers(shape)).model, models.with_weights(base, {})
    plain, oracle = rows.classifier(frozen, OFFS).eval(), rows.classifier(wide, OFFS).double().eval()
    official = rows.classifier(models.adapt(base, "official", layers(shape)).model.double(), OFFS).eval()
    adapted = models.adapt(base, "ours", layers(shape), backend_of(scale)).model
    patched = rows.classifier(adapted, mora.Savings()).eval()
    providers = {PLAIN: eval_provider(plain, oracle, rows, "both")}
    for name, kind in KINDS.items():
        providers[name] = eval_provider(patched, official, rows, kind, keep=True)
    for name, kind in NOT_KEPT.items():
        providers[name] = eval_provider(patched, official, rows, kind)
    return Case(NAME, shape, PLAIN, providers, others(providers))


def eval_provider(
    model: mora.MissingModalityClassifier,
    oracle: mora.MissingModalityClassifier,
    rows: Rows,
    kind: str,
    keep: bool = False,
) -> Provider:
    """Logits of one batch; `keep`: all calls within one `mora.keeping`."""

    def logits(classifier: mora.MissingModalityClassifier) -> Tensor:
        image = rows.image.to(classifier.head.weight.dtype)
        return classifier(image, rows.text, *rows.flags(kind))

    def check() -> None:
        with torch.inference_mode():
            assert_parity("logits", mine(), logits(oracle), TOLERANCE)

    mine = within_keeping(model, lambda: logits(model)) if keep else lambda: logits(model)

    def run() -> Tensor:
        with torch.inference_mode(), torch.autocast(rows.device, torch.float16, rows.device == "cuda"):
            return mine()

    return Provider(run, check)


def epoch(shape: Shape, scale: Scale) -> Case:
    """An epoch after the first, with its validation, on the built-in data."""
    absent = {trained.LORA: lora.ABSENT} if lora.ABSENT else {}
    ways = {name: trained.Trained(name, shape, scale.device) for name in trained.FIELDS if name not in absent}
    official = functools.cache(ways[trained.OFF].formula)
    oracles = {name: ways[name].formula if name == trained.LORA else official for name in ways}
    providers = {name: way.provider(oracles[name], TOLERANCE) for name, way in ways.items()}
    return Case(NAME, shape, trained.OFFICIAL, providers, {**others(providers), **absent})
