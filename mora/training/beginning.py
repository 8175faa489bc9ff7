"""Where a head begins: class names embedded, or prototypes at the class means of the training features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mora.classifier import MissingModalityClassifier
from mora.data.dataset import Dataset
from mora.heads import Directions, Prototypes, ZeroShot
from mora.patterns import patterns_of
from mora.towers.cutting import evaluating

if TYPE_CHECKING:
    from mora.training.engine import Engine


class ClassSums:
    """Sums of features by presence pattern and class, in float64.

    A row counts for its own pattern and for every pattern within it: a complete one is an image without its text, too.

    Args:
        model: the classifier.
        num_classes: C.
    """

    def __init__(self, model: MissingModalityClassifier, num_classes: int) -> None:
        self.model, self.classes = model, num_classes
        self.patterns = patterns_of(model.towers)
        self.alone = {modality: model.embedded_missing(modality).double() for modality in model.towers}
        count, width = len(self.patterns), sum(alone.shape[1] for alone in self.alone.values())
        zeros = partial(torch.zeros, dtype=torch.float64, device=model.device)
        self.sums, self.counts = zeros(count, num_classes, width), zeros(count, num_classes)
        self.total, self.rows = zeros(count, width), zeros(count)

    def add(self, features: Tensor, there: Mapping[str, Tensor], labels: Tensor) -> None:
        """Count a batch: features [B, D], presence bool [B] by modality, labels [B] or multi-hot [B, C]."""
        hot = labels.double() if labels.dim() == 2 else F.one_hot(labels, self.classes).double()
        parts = features.double().split([alone.shape[1] for alone in self.alone.values()], dim=1)
        embedded = dict(zip(self.alone, parts, strict=True))
        for place, pattern in enumerate(self.patterns):
            keep = torch.stack([there[modality] for modality in pattern]).all(dim=0)
            seen = [embedded[m] if m in pattern else self.alone[m].expand(len(keep), -1) for m in self.alone]
            kept, labelled = torch.cat(seen, dim=1)[keep], hot[keep]
            self.sums[place] += labelled.T @ kept
            self.counts[place] += labelled.sum(dim=0)
            self.total[place] += kept.sum(dim=0)
            self.rows[place] += len(kept)

    def tensors(self) -> list[Tensor]:
        """What `Prototypes.begin` takes."""
        return [self.sums, self.counts, self.total, self.rows]


@torch.no_grad()
def name_classes(model: MissingModalityClassifier, task: Dataset, tokenize: Callable[[list[str]], Tensor]) -> None:
    """Put the embeddings of the classes' names into a zero-shot head; nothing for other heads.

    Raises ValueError for classes that have no names, and rows with several labels, which take a threshold per class.
    """
    if not isinstance(model.head, ZeroShot):
        if isinstance(model.head, Directions):
            take_scale(model)
        return
    names = [name.replace("_", " ").strip() for name in task.classes]
    if all(not any(letter.isalpha() for letter in name) for name in names):
        shown = ", ".join(map(repr, task.classes[:3]))
        raise ValueError(
            f"method: got 'zero-shot' on {task.name}, whose classes have no names ({shown}), expected names: they are "
            "the prompts"
        )
    if task.multi_label:
        raise ValueError(
            f"method: got 'zero-shot' on {task.name}, whose rows have several labels, expected one label per row: "
            "cosines have no threshold that was not trained"
        )
    with evaluating(model.model):
        parts = [model.embed_rows("text", tokenize([name]).to(model.device)) for name in names]
    model.head.classes.copy_(F.normalize(torch.cat(parts), dim=-1))
    take_scale(model)


@torch.no_grad()
def take_scale(model: MissingModalityClassifier) -> None:
    """Put the model's own factor of cosines, where it has one, into a head of cosines."""
    scale = getattr(model.clip, "logit_scale", None)
    if isinstance(scale, Tensor):
        model.head.scale.copy_(scale.exp())


@torch.no_grad()
def begin_head(engine: Engine) -> None:
    """Put class means into prototypes; nothing for other heads. Every process passes a part of the rows."""
    model, task = engine.model, engine.task
    if not isinstance(model.head, Prototypes):
        return
    model.eval()
    found = ClassSums(model, len(task.classes))
    own, size = list(range(engine.rank, len(task), engine.processes)), engine.config.batch
    for batch in engine.batches("train", [own[at : at + size] for at in range(0, len(own), size)]):
        placed = engine.to_device(batch)
        features, there = engine.forward(model.features, placed)
        found.add(features, there, placed["label"])
    model.head.begin(*(engine.accelerator.reduce(tensor, "sum") for tensor in found.tensors()))
