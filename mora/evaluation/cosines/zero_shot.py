"""Classes by their names alone: cosines of embeddings to prompts, nothing trained on labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mora.data.dataset import Dataset
from mora.evaluation.cosines.models import ADAPTED
from mora.evaluation.cosines.rows import Embedded, embed_rows
from mora.metrics import Metric
from mora.runs.run import LoadedRun
from mora.system.messages import listed

TEMPLATES = ("a photo of a {}",)  # CLIP's plain one
PROMPTS = 256  # texts at a time
ALL = "all"


@dataclass(frozen=True)
class Named:
    """How well names of classes say what rows are, by one modality or by all that a row has.

    Attributes:
        model, state: as in `mora.evaluation.cosines.retrieval.Retrieved`.
        modality: "image", "text", or "all": the mean of the cosines of those that are there.
        rows: how many have it.
        accuracy, macro_accuracy: top 1, over rows, and averaged over the classes that occur.
    """

    model: str
    state: str
    modality: str
    rows: int
    accuracy: float
    macro_accuracy: float

    def lines(self) -> list[dict[str, Any]]:
        """The fields, for files."""
        return [asdict(self)]


def evaluate_zero_shot(
    run: LoadedRun,
    dataset: Dataset,
    names: Sequence[str] | None = None,
    templates: Sequence[str] = TEMPLATES,
    label: str | None = None,
    state: str = ADAPTED,
    batch: int = 64,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[Named]:
    """Top-1 accuracy of the nearest class name, for images, texts and both together.

    Args:
        run: a model, as for `mora.evaluation.cosines.retrieval.evaluate_retrieval`.
        dataset: one split, with one label per row.
        names: of the classes, in their order; None takes the data's, with blanks for underscores.
        templates: sentences with {} where the name stands; the mean of their embeddings stands for a class.
        label, state, batch, workers, progress: as there.

    Raises ValueError for classes without names, rows of several labels, and a template without {}.
    """
    names = class_names(dataset, names, templates)
    with torch.no_grad():
        classes = name_embeddings(run, names, templates)
    found = embed_rows(run, dataset, batch, workers, progress).normalized()
    return [
        Named(
            label or run.method,
            state,
            modality,
            int(there.sum()),
            **scores(logits[there], found.labels[there], len(names)),
        )
        for modality, (logits, there) in logits_of(found, classes).items()
        if there.any()
    ]


def class_names(dataset: Dataset, names: Sequence[str] | None, templates: Sequence[str]) -> list[str]:
    """What the classes are called; ValueError for what cannot be a prompt."""
    if dataset.multi_label:
        raise ValueError(f"data: {dataset.name} has several labels per row, expected one: cosines have no threshold")
    if not templates or any("{}" not in template for template in templates):
        raise ValueError(f"templates: got {list(templates)}, expected sentences with {{}} where a name stands")
    if names is None:
        names = [name.replace("_", " ").strip() for name in dataset.classes]
    if len(names) != len(dataset.classes):
        raise ValueError(f"class-names: got {len(names)}, expected one for each of the {len(dataset.classes)} classes")
    if len(names) < 2 or all(not any(letter.isalpha() for letter in name) for name in names):
        raise ValueError(f"data: the classes of {dataset.name} are {listed(map(repr, names))}, expected names of two")
    return list(names)


def name_embeddings(run: LoadedRun, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """The mean of the embeddings of a class's prompts, of length 1, float32 [C, e], on the CPU."""
    prompts = [template.replace("{}", name) for name in names for template in templates]
    tokens = run.tokenize(prompts).to(run.model.device).split(PROMPTS)
    rows = torch.cat([run.model.embed_rows("text", part).float().cpu() for part in tokens])
    means = F.normalize(rows, dim=-1).unflatten(0, (len(names), len(templates))).mean(dim=1)
    return F.normalize(means, dim=-1)


def logits_of(found: Embedded, classes: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """(cosines to the classes [N, C], which rows count bool [N]) by modality, and of all together."""
    cosines = {modality: rows @ classes.T for modality, rows in found.rows.items()}
    present = torch.stack([found.present[modality] for modality in cosines], dim=1)
    share = present / present.sum(dim=1, keepdim=True)
    together = sum(share[:, place, None] * one for place, one in enumerate(cosines.values()))
    one = {modality: (rows, found.present[modality]) for modality, rows in cosines.items()}
    return {**one, ALL: (torch.as_tensor(together), present.any(dim=1))}


def scores(logits: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    """Accuracy over rows and over classes."""
    metric = Metric("accuracy", classes, False)
    metric.update(logits, labels)
    return metric.compute()
