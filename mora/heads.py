"""Heads that know which modalities a row has, on the embeddings of every tower side by side.

`present` is bool [B, M], a column per modality in the order of the towers; P = 2^M - 1 patterns (`mora.patterns`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mora.patterns import pattern_index, patterns_of

LINEAR, BIAS, PROTOTYPES, ZERO_SHOT, NONE = "linear", "pattern-bias", "prototypes", "zero-shot", "none"
HEADS = (LINEAR, BIAS, PROTOTYPES)  # those that are trained
KINDS = (*HEADS, ZERO_SHOT, NONE)
SUBSTITUTE, LEARNED, ZERO = "substitute", "learned", "zero"
MISSING_EMBEDDINGS = (SUBSTITUTE, LEARNED, ZERO)
SCALE = 1 / 0.07  # CLIP's first
SMALLEST = 1e-6  # norm under which a vector has no direction


class PresenceHead(nn.Module, ABC):
    """A head whose logits depend on which modalities a row has."""

    @abstractmethod
    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        """Logits [B, C] of features [B, D] and presence bool [B, M]."""


class PatternBias(PresenceHead):
    """logits = W features + bias[pattern]: the linear head with a bias vector per presence pattern, at first the same.

    Args:
        modalities: of the towers, in their order.
        linear: the head it begins as; W is its weight [C, D], and the bias [P, C] is its bias P times.
    """

    def __init__(self, modalities: Sequence[str], linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = nn.Parameter(linear.bias.detach().repeat(len(patterns_of(modalities)), 1))

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        return F.linear(features, self.weight) + self.bias[pattern_index(present)]


class Prototypes(PresenceHead):
    """logits = exp(log_scale) cos(features - center[pattern], prototypes[pattern]) + bias[pattern].

    Prototypes [P, C, D], center [P, D] and bias [P, C] are drawn N(0, 0.02), 0 and 0; `begin` puts class means there.
    Centring matters: embeddings of a CLIP lie in a narrow cone, where all cosines are nearly the same.

    Args:
        modalities: of the towers, in their order.
        like: a tensor [C, D] on the device and of the dtype of the head.
    """

    def __init__(self, modalities: Sequence[str], like: Tensor) -> None:
        super().__init__()
        count, (classes, width) = len(patterns_of(modalities)), like.shape
        self.prototypes = nn.Parameter(like.new_empty(count, classes, width).normal_(std=0.02))
        self.center = nn.Parameter(like.new_zeros(count, width))
        self.bias = nn.Parameter(like.new_zeros(count, classes))
        self.log_scale = nn.Parameter(like.new_tensor(math.log(SCALE)))

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        directions = F.normalize(features - self.center[:, None], dim=-1, eps=SMALLEST)  # [P, B, D]
        cosines = directions @ F.normalize(self.prototypes, dim=-1, eps=SMALLEST).mT
        index = pattern_index(present)
        chosen = cosines[index, torch.arange(len(index), device=index.device)]
        return self.log_scale.exp() * chosen + self.bias[index]

    @torch.no_grad()
    def begin(self, sums: Tensor, counts: Tensor, total: Tensor, rows: Tensor) -> None:
        """Begin at the class means of features; what has none, or no direction from the center, stays as it was drawn.

        Args:
            sums, counts: of the features of each pattern's rows by class, [P, C, D] and [P, C].
            total, rows: of all its rows, [P, D] and [P].
        """
        center = torch.where(rows[:, None] > 1, total / rows.clamp(min=1)[:, None], 0.0)
        means = sums / counts.clamp(min=1)[..., None] - center[:, None]
        known = (counts > 0) & (torch.linalg.vector_norm(means, dim=-1) > SMALLEST)
        self.center.copy_(center)
        self.prototypes.copy_(torch.where(known[..., None], means.to(self.prototypes), self.prototypes))


class ZeroShot(PresenceHead):
    """logits = scale * mean over the modalities there of cos(embedding, embedding of the class's name): not trained.

    Args:
        widths: e of each tower: all the same, for the names are embedded by one of them.
        like: a tensor [C, D] on the device and of the dtype of the head.

    Raises ValueError for towers of different widths.
    """

    classes: Tensor
    scale: Tensor

    def __init__(self, widths: Mapping[str, int], like: Tensor) -> None:
        super().__init__()
        if len({*widths.values()}) > 1:
            raise ValueError(f"head: got towers of widths {dict(widths)}, expected one width for zero-shot")
        self.register_buffer("classes", like.new_zeros(len(like), next(iter(widths.values()))))
        self.register_buffer("scale", like.new_tensor(SCALE))

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        parts = F.normalize(features.unflatten(-1, (present.shape[1], -1)), dim=-1)  # [B, M, e]
        share = present / present.sum(dim=1, keepdim=True)
        return self.scale * ((parts * share[..., None]).sum(dim=1) @ self.classes.mT)


class Directions(PresenceHead):
    """No head: the embeddings themselves, each of length 1 and zero where its modality is missing; nothing is trained.

    Args:
        widths: e of each tower: all the same, for embeddings are compared with each other.
        like: a tensor on the device and of the dtype of the embeddings.

    Raises ValueError for towers of different widths.
    """

    scale: Tensor

    def __init__(self, widths: Mapping[str, int], like: Tensor) -> None:
        super().__init__()
        if len({*widths.values()}) > 1:
            raise ValueError(f"head: got towers of widths {dict(widths)}, expected one width to compare embeddings")
        self.register_buffer("scale", like.new_tensor(SCALE))

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        features = features.to(torch.promote_types(features.dtype, torch.float32))  # half loses cosines
        parts = F.normalize(features.unflatten(-1, (present.shape[1], -1)), dim=-1)  # [B, M, e]
        return (parts * present[..., None]).flatten(1)


def make_head(kind: str, widths: Mapping[str, int], num_classes: int, like: Tensor) -> nn.Module:
    """The head of a kind on towers of some widths, on the device of `like`, in its dtype but at least float32."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    linear = nn.Linear(sum(widths.values()), num_classes, device=like.device, dtype=dtype)
    with torch.no_grad():
        linear.weight.normal_(std=0.02)
    if kind == BIAS:
        return PatternBias([*widths], linear)
    if kind == PROTOTYPES:
        return Prototypes([*widths], linear.weight.detach())
    if kind == NONE:
        return Directions(widths, linear.weight.detach())
    if kind == ZERO_SHOT:
        return ZeroShot(widths, linear.weight.detach())
    return linear


def classify(head: nn.Module, features: Tensor, present: Mapping[str, Tensor]) -> Tensor:
    """Logits [B, C] of a head of any kind; `present` bool [B] by modality."""
    if not isinstance(head, PresenceHead):
        logits: Tensor = head(features)
        return logits
    return head(features, torch.stack([*present.values()], dim=1))


def first_tensor(head: nn.Module) -> Tensor:
    """A tensor of the head: it has the device and the dtype of all."""
    for tensor in head.parameters():
        return tensor
    return next(head.buffers())
