"""What the adapted model does to a batch, beside the pretrained one: embeddings, pairs, nearest class names, head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mora.diagnosis.figures import Drift, Head, Pairing, ZeroShot
from mora.system.messages import shown
from mora.towers.tower import Tower

Encode = Callable[[str, Tensor], Tensor]  # modality, inputs -> embeddings
ROWS = 64  # through a tower at a time
IMAGE, TEXT = "image", "text"  # zero-shot classification is of images, by names


class Batch(NamedTuple):
    """Checked rows of some modalities, what each row has, and what it is.

    Attributes:
        inputs: by modality, as its tower takes them, [B, ...].
        present: bool [B] by modality: rows to look at.
        labels: int64 [B] or multi-hot [B, C]; None where not known.
        prompts: text inputs that stand for the classes, [C, ...]; None where not known.
    """

    inputs: Mapping[str, Tensor]
    present: Mapping[str, Tensor]
    labels: Tensor | None
    prompts: Tensor | None

    @classmethod
    def checked(
        cls,
        towers: Mapping[str, Tower],
        inputs: Mapping[str, Tensor] | None,
        present: Mapping[str, Tensor] | None = None,
        labels: Tensor | None = None,
        prompts: Tensor | None = None,
    ) -> Batch:
        """The batch; ValueError that names what does not fit."""
        inputs, present = {} if inputs is None else inputs, {} if present is None else present
        if not isinstance(inputs, Mapping):
            raise ValueError(f"batch: got {type(inputs).__name__}, expected inputs by modality, {', '.join(towers)}")
        for name, given in (("batch", inputs), ("present", present)):
            if unknown := [modality for modality in given if modality not in towers]:
                raise ValueError(f"{name}: got {shown(unknown)}, expected some of {', '.join(towers)}")
        rows = {modality: len(one) for modality, one in inputs.items()}
        if len({*rows.values()}) > 1 or 0 in rows.values():
            raise ValueError(f"batch: got {shown(rows)} rows, expected one number of at least 1")
        count = next(iter(rows.values()), 0)
        masks = {modality: torch.ones(count, dtype=torch.bool) for modality in inputs}
        for modality, mask in present.items():
            if modality not in inputs or mask.dtype != torch.bool or tuple(mask.shape) != (count,):
                raise ValueError(
                    f"present[{modality!r}]: got {mask.dtype} {tuple(mask.shape)}, expected a bool tensor ({count},) "
                    "of a modality of the batch"
                )
            masks[modality] = mask.cpu()
        if (labels is None) != (prompts is None):
            raise ValueError("labels, prompts: got one of them, expected both (zero-shot accuracy) or none")
        if labels is not None and prompts is not None:
            check_classes(towers, inputs, labels, prompts, count)
        return cls(inputs, masks, labels, prompts)


def check_classes(
    towers: Mapping[str, Tower], inputs: Mapping[str, Tensor], labels: Tensor, prompts: Tensor, count: int
) -> None:
    """Raise ValueError unless images can be compared with the names of classes."""
    if IMAGE not in inputs or TEXT not in towers:
        raise ValueError(f"prompts: got a batch of {', '.join(inputs) or 'nothing'}, expected images and a text tower")
    if labels.shape[:1] != (count,) or labels.ndim > 2 or (labels.ndim == 2 and labels.shape[1] != len(prompts)):
        raise ValueError(f"labels: got {tuple(labels.shape)}, expected ({count},) or ({count}, {len(prompts)})")
    if labels.ndim == 1 and not bool(((labels >= 0) & (labels < len(prompts))).all()):
        raise ValueError(f"labels: got {int(labels.min())} to {int(labels.max())}, expected 0 to {len(prompts) - 1}")


class Seen(NamedTuple):
    """Embeddings of the rows that are there, float32 on the CPU, by modality; and of the prompts."""

    rows: dict[str, Tensor]
    names: Tensor | None


@torch.no_grad()
def see(encode: Encode, batch: Batch) -> Seen:
    """What one model makes of a batch."""

    def all_rows(modality: str, given: Tensor) -> Tensor:
        parts = [encode(modality, given[at : at + ROWS]).float().cpu() for at in range(0, len(given), ROWS)]
        return torch.cat(parts)

    rows = {
        modality: all_rows(modality, given[batch.present[modality].to(given.device)])
        for modality, given in batch.inputs.items()
        if bool(batch.present[modality].any())
    }
    return Seen(rows, None if batch.prompts is None else all_rows(TEXT, batch.prompts))


def drifts(now: Seen, before: Seen) -> tuple[Drift, ...]:
    """How far every modality's embeddings went."""
    found = []
    for modality, rows in now.rows.items():
        first = before.rows[modality]
        move = (rows - first).norm(dim=-1) / first.norm(dim=-1).clamp(min=1e-12)
        cosine = F.cosine_similarity(rows, first, dim=-1)
        found.append(Drift(modality, len(rows), float(cosine.mean()), float(move.mean())))
    return tuple(found)


def pairings(now: Seen, before: Seen, batch: Batch) -> tuple[Pairing, ...]:
    """Cosines between modalities of embeddings of one width, over the rows that have both."""
    found = []
    for one, other in combinations(now.rows, 2):
        both = batch.present[one] & batch.present[other]
        if now.rows[one].shape[-1] == now.rows[other].shape[-1] and bool(both.any()):
            after, first = (paired_cosines(seen, batch, one, other, both) for seen in (now, before))
            found.append(Pairing((one, other), int(both.sum()), first[0], after[0], first[1], after[1]))
    return tuple(found)


def paired_cosines(seen: Seen, batch: Batch, one: str, other: str, both: Tensor) -> tuple[float, float]:
    """Mean cosine of the same row, and of different rows (NaN where there is one row)."""
    left, right = (F.normalize(seen.rows[name][both[batch.present[name]]], dim=-1) for name in (one, other))
    cosines = left @ right.T
    count = len(cosines)
    same = float(cosines.diagonal().mean())
    apart = float(cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1)) if count > 1 else float("nan")
    return same, apart


def zero_shot(now: Seen, before: Seen, batch: Batch) -> ZeroShot | None:
    """Accuracy of the nearest name, before and after; None without names, labels or images."""
    if batch.labels is None or IMAGE not in now.rows or now.names is None or before.names is None:
        return None
    if now.rows[IMAGE].shape[-1] != now.names.shape[-1]:
        return None
    labels = batch.labels.cpu()[batch.present[IMAGE]]
    after, first = (nearest_is_right(seen.rows[IMAGE], names, labels)
                    for seen, names in ((now, now.names), (before, before.names)))  # fmt: skip
    return ZeroShot(len(labels), len(now.names), first, after)


def nearest_is_right(images: Tensor, names: Tensor, labels: Tensor) -> float:
    """The share of images whose nearest name is that of their class, or of one of their classes."""
    nearest = (F.normalize(images, dim=-1) @ F.normalize(names, dim=-1).T).argmax(dim=-1)
    right = nearest == labels if labels.ndim == 1 else labels.gather(1, nearest[:, None])[:, 0] > 0
    return float(right.double().mean())


@torch.no_grad()
def heads(head: nn.Module | None, widths: Mapping[str, int], now: Seen | None) -> tuple[Head, ...]:
    """What a linear head on the embeddings of all towers side by side makes of each; nothing for another head."""
    if not isinstance(head, nn.Linear) or head.in_features != sum(widths.values()):
        return ()
    parts = head.weight.detach().float().cpu().split([*widths.values()], dim=1)
    found = []
    for (modality, _), part in zip(widths.items(), parts, strict=True):
        rows = None if now is None else now.rows.get(modality)
        reach = None
        if rows is not None and len(rows) > 1:
            reach = float(((rows - rows.mean(dim=0)) @ part.T).square().sum(dim=-1).mean().sqrt())
        found.append(Head(modality, float(part.norm()), reach))
    return tuple(found)
