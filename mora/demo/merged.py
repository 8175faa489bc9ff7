"""The best MoRA run as a plain CLIP on disk, and the proof that it predicts what the adapted one did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mora.demo.methods import adapt
from mora.demo.prefixes import Inputs, Prefixes
from mora.demo.settings import Settings
from mora.demo.training import Embedder, Run, combine, embed_all, restore
from mora.export.card import snippet
from mora.export.formats import OPEN_CLIP, write_open_clip
from mora.export.merge import ABOUT, CARD, HEAD
from mora.patch import merge
from mora.runs.backbone import TINY, load_backbone
from mora.runs.methods import MORA_VARIANTS
from mora.system.files import pack_tensors, write_bytes, write_json
from mora.towers.find import towers_of
from mora.version import __version__

README = """# A CLIP adapted with MoRA and merged: {label}, seed {seed}

Written by `mora demo`, for open_clip: weights under the keys of the untouched tiny CLIP, its configuration and
tokenizer; `classifier.safetensors`, the linear head on [image embedding; text embedding]; `classifier.json`, classes
and settings.

```python
{code}
```

Test accuracy of this run: {accuracy}. Merged and adapted logits differ by at most {difference:.1e} on the test part,
and {changed} of {rows} predictions change.
"""


def best_mora(runs: list[Run]) -> Run | None:
    """The run with the best validation accuracy among "mora", else among its variants, else None."""
    for names in (("mora",), tuple(MORA_VARIANTS)):
        candidates = [run for run in runs if run.method in names]
        if candidates:
            return max(candidates, key=lambda run: run.best)
    return None


@torch.no_grad()
def merge_run(
    base: Any, preprocess: Any, inputs: Inputs, prefixes: Prefixes, settings: Settings, run: Run
) -> tuple[Any, nn.Linear, dict[str, Any]]:
    """The plain CLIP and the head of one run, and how far their logits on the whole test part are from the adapted's.

    The merged model runs from pixels and tokens through every block; the adapted one from the prefixes.
    """
    model, adapters = adapt(base, run.method, settings)
    width = sum(tower.width(base) for tower in towers_of(base).values())
    head = nn.Linear(width, len(prefixes.classes))
    restore(head, adapters, run.state)
    complete = torch.zeros(len(prefixes.test))
    adapted = head(combine(embed_all(Embedder(model, prefixes.first), prefixes.test), complete))
    merged = merge(model).eval()
    parts = zip(inputs.images.split(128), inputs.tokens.split(128), strict=True)
    logits = torch.cat([plain_logits(merged, head, preprocess(image), tokens) for image, tokens in parts])
    found = {
        "max_difference": float((logits - adapted).abs().max()),
        "max_logit": float(adapted.abs().max()),
        "changed_predictions": int((logits.argmax(-1) != adapted.argmax(-1)).sum()),
        "rows": len(logits),
    }
    return merged, head, found


def plain_logits(model: Any, head: nn.Linear, image: Tensor, tokens: Tensor) -> Tensor:
    """Logits [B, C] by the model's own towers."""
    features = torch.cat([model.encode_image(image), model.encode_text(tokens)], dim=-1)
    return F.linear(features, head.weight, head.bias)


def write_merged(
    folder: Path, model: Any, head: nn.Linear, found: dict[str, Any], run: Run, settings: Settings, classes: Any
) -> None:
    """Write what open_clip loads, the head, the settings and a card, each file by rename."""
    folder.mkdir(parents=True, exist_ok=True)
    write_open_clip(folder, model, load_backbone(TINY))
    write_bytes(folder / HEAD, pack_tensors(head.state_dict(), {"format": "pt"}))
    config = {
        "method": run.method,
        "seed": run.seed,
        "mora_version": __version__,
        "best_epoch": run.best_epoch,
        "validation_accuracy": run.best,
        "test_accuracy": run.test,
        "merged_against_adapted": found,
        "settings": settings.to_dict(),
        "classes": list(classes),
    }
    write_json(folder / ABOUT, config)
    accuracy = ", ".join(f"{100 * value:.1f} % ({name})" for name, value in run.test.items())
    text = README.format(
        code=snippet(OPEN_CLIP, multi_label=False, token_policy="plain", merges=True),
        label=run.method,
        seed=run.seed,
        accuracy=accuracy,
        difference=found["max_difference"],
        changed=found["changed_predictions"],
        rows=found["rows"],
    )
    write_bytes(folder / CARD, text.encode())
