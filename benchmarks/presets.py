"""The published recipes and data sets as README and docs show them: counted, not typed."""

from __future__ import annotations

from collections.abc import Callable

import mora
from mora.data.published import PUBLISHED
from mora.evaluation.tables import FIGURES
from mora.training.config import RECIPES

WIDTHS = {"image": 768, "text": 512}  # ViT-B/16
EMBEDDINGS, CLIP_PARAMETERS = 1024, 149_620_737
TITLES = {"mmimdb": "MM-IMDb", "food101": "UPMC Food-101", "hateful_memes": "Hateful Memes"}


def parameters(config: mora.MoraConfig) -> int:
    """Adapter parameters on ViT-B/16: per layer sum d r_c + sum over projections of (2 d + 2 d r_s)."""
    shared = sum(WIDTHS.values()) * config.shared_rank
    own = sum(2 * d + 2 * d * config.specific_rank(modality) for modality, d in WIDTHS.items())
    return config.last_layers * (shared + len(config.targets) * own)


def table(markdown: Callable[..., str]) -> str:
    """Presets: targets, ranks, alpha, adapter parameters, and with the head of the data set."""
    lines = []
    for name, config in mora.PRESETS.items():
        adapters, classes = parameters(config), PUBLISHED[name].num_classes
        total = adapters + EMBEDDINGS * classes + classes
        ranks = f"{config.shared_rank}, {config.specific_rank('image')}"
        share = f" ({100 * total / CLIP_PARAMETERS:.2f} % of CLIP ViT-B/16)"
        cells = [", ".join(config.targets), ranks, f"{config.alpha:g}", f"{adapters:,}", f"{total:,}{share}"]
        lines.append([f'`mora.PRESETS["{name}"]`', *cells])
    head = ["preset", "targets", "ranks (common, specific)", "alpha", "adapters", "with the data set's head"]
    return markdown(head, lines)


def recipes(markdown: Callable[..., str]) -> str:
    """What a preset of `mora train` sets: adapters and recipe."""
    lines = []
    for name, config in mora.PRESETS.items():
        ranks = f"{config.shared_rank}, {config.specific_rank('image')}"
        lines.append([f"`{name}`", ", ".join(config.targets), ranks, f"{config.alpha:g}", *map(str, RECIPES[name])])
    return markdown(["preset", "targets", "ranks", "alpha", "epochs", "batch", "weight decay"], lines)


def published(markdown: Callable[..., str]) -> str:
    """The published data sets: sizes, classes, metric."""
    lines = []
    for name, data in PUBLISHED.items():
        counts = " / ".join(f"{count:,}" for count in data.counts)
        classes = f"{data.num_classes}{', several per row' if data.multi_label else ''}"
        lines.append([TITLES[name], f"`{name}`", counts, classes, FIGURES[data.metric]])
    return markdown(["data set", "name", "images in train / val / test", "classes", "metric"], lines)
