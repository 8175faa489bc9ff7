"""The published recipes as README shows them: counted, not typed."""

from __future__ import annotations

from collections.abc import Callable

import mora

WIDTHS = {"image": 768, "text": 512}  # ViT-B/16
EMBEDDINGS, CLIP_PARAMETERS = 1024, 149_620_737
CLASSES = {"mmimdb": 23, "food101": 101, "hateful_memes": 2}


def parameters(config: mora.MoraConfig) -> int:
    """Adapter parameters on ViT-B/16: per layer sum d r_c + sum over projections of (2 d + 2 d r_s)."""
    shared = sum(WIDTHS.values()) * config.shared_rank
    own = sum(2 * d + 2 * d * config.specific_rank(modality) for modality, d in WIDTHS.items())
    return config.last_layers * (shared + len(config.targets) * own)


def table(markdown: Callable[..., str]) -> str:
    """Presets: targets, ranks, alpha, adapter parameters, and with the head of the data set."""
    lines = []
    for name, config in mora.PRESETS.items():
        adapters, classes = parameters(config), CLASSES[name]
        total = adapters + EMBEDDINGS * classes + classes
        ranks = f"{config.shared_rank}, {config.specific_rank('image')}"
        share = f" ({100 * total / CLIP_PARAMETERS:.2f} % of CLIP ViT-B/16)"
        cells = [", ".join(config.targets), ranks, f"{config.alpha:g}", f"{adapters:,}", f"{total:,}{share}"]
        lines.append([f'`mora.PRESETS["{name}"]`', *cells])
    head = ["preset", "targets", "ranks (common, specific)", "alpha", "adapters", "with the data set's head"]
    return markdown(head, lines)
