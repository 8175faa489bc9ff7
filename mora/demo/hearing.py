"""The demo's audio tower: trained to put a recording where the frozen tiny CLIP puts its text and its picture.

A batch of recordings of the training part, in any language, is contrasted with all texts, and with all pictures, of
that part: -log softmax of the scaled cosines, summed over those of the recording's own stamp (equal texts are one).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mora.tiny import audio as tiny_audio
from mora.tiny.audio import SILENCE


@dataclass(frozen=True)
class Recipe:
    """How the tower is trained; the defaults take minutes on two cores."""

    epochs: int = 8
    batch: int = 64
    rate: float = 1.5e-3
    weight_decay: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Part:
    """Recordings as features float16 [N, 1, T, mels], and which of the stamps [S, e] each is of.

    `texts` and `images` are the frozen CLIP's embeddings of the stamps, normalised; `same` [S, S] says which have one
    text.
    """

    features: Tensor
    stamps: Tensor
    texts: Tensor
    images: Tensor
    same: Tensor


def pretrain(train: Part, held_out: Part, recipe: Recipe, report: Callable[[str], None]) -> tuple[nn.Module, Any]:
    """(the audio tower after the last step, what was measured); nothing is chosen by the held-out recordings."""
    began = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        tower = tiny_audio.build().train()
        scales = nn.Parameter(torch.full((2,), math.log(10.0)))
        targets = [centred(towards, towards) for towards in (train.texts, train.images)]
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in tower.parameters() if p.ndim >= 2], "weight_decay": recipe.weight_decay},
                {"params": [*(p for p in tower.parameters() if p.ndim < 2), scales], "weight_decay": 0.0},
            ],
            lr=recipe.rate,
            betas=(0.9, 0.98),
        )
        steps_of_epoch = math.ceil(len(train.features) / recipe.batch)
        steps = recipe.epochs * steps_of_epoch
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, steps))
        for epoch in range(recipe.epochs):
            total = 0.0
            for rows in torch.randperm(len(train.features)).split(recipe.batch):
                embedded = F.normalize(tower(augment(train.features[rows].float())), dim=1)
                stamps = train.stamps[rows]
                losses = [
                    contrast(scale.exp().clamp(max=100) * embedded @ towards.T, train.same[stamps])
                    for scale, towards in zip(scales, targets, strict=True)
                ]
                loss = torch.stack(losses).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
                total += float(loss.detach()) * len(rows) / len(train.features)
            report(f"audio tower: epoch {epoch + 1} of {recipe.epochs}, loss {total:.2f}")
    tower.eval()
    seconds = time.perf_counter() - began
    figures = {name: retrieval(tower, part, train) for name, part in (("train", train), ("validation", held_out))}
    return tower, {"recipe": asdict(recipe), "seconds": round(seconds, 1), **figures}


def centred(embeddings: Tensor, of: Tensor) -> Tensor:
    """Embeddings less the mean of others, normalised: a CLIP's lie in a narrow cone, in which cosines hardly differ."""
    return F.normalize(embeddings - of.mean(dim=0), dim=1)


def rate_at(step: int, steps: int) -> float:
    """Warm-up over 5 % of the steps, then a cosine to zero."""
    warm = max(1, steps // 20)
    return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / steps)))


def contrast(logits: Tensor, positive: Tensor) -> Tensor:
    """-log of the share of a row's own in the softmax over all, mean over rows; [B, S] both."""
    own = logits.masked_fill(~positive, -math.inf).logsumexp(dim=1)
    return (logits.logsumexp(dim=1) - own).mean()


def augment(features: Tensor) -> Tensor:
    """Features [B, 1, T, mels] moved in time and pitch, faster or slower, quieter, with noise, parts of them silent."""
    count, _, frames, bands = features.shape

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, 1, 1) * (high - low) + low

    tempo, delay, pitch = uniform(0.9, 1.1), uniform(-0.02, 0.12), uniform(-1.0, 1.0)
    time_at = ((torch.arange(frames) + 0.5) / frames - delay) * tempo
    band_at = (torch.arange(bands) + 0.5 - pitch) / bands
    grid = torch.stack([band_at.expand(count, frames, bands), time_at.transpose(1, 2).expand(count, frames, bands)], -1)
    moved = F.grid_sample(features - SILENCE, grid * 2 - 1, align_corners=False) + SILENCE
    floor = SILENCE + uniform(0.0, 0.8)[..., None] + 0.1 * torch.randn_like(moved)
    moved = torch.maximum(moved, floor.where(uniform(0, 1)[..., None] < 0.5, torch.full_like(floor, SILENCE)))
    for length, most, shape in ((frames, 20, (1, 1, frames, 1)), (bands, 6, (1, 1, 1, bands))):
        begin, width = torch.rand(count, 1, 1, 1) * length, torch.rand(count, 1, 1, 1) * most
        place = torch.arange(length).view(shape)
        moved = moved.masked_fill((place >= begin) & (place < begin + width), SILENCE)
    return moved


@torch.no_grad()
def embed(tower: nn.Module, features: Tensor, batch: int = 256) -> Tensor:
    """Normalised embeddings [N, e]."""
    return torch.cat([F.normalize(tower(rows.float()), dim=1) for rows in features.split(batch)])


def retrieval(tower: nn.Module, part: Part, train: Part, at: Sequence[int] = (1, 5)) -> dict[str, Any]:
    """How often a recording's own stamp is among the nearest, by text and by picture, and what chance gives."""
    embedded = embed(tower, part.features)
    same = part.same[part.stamps]
    found: dict[str, Any] = {"recordings": len(part.features), "stamps": len(part.texts)}
    for name, towards, of in (("text", part.texts, train.texts), ("image", part.images, train.images)):
        similar = embedded @ centred(towards, of).T
        best = similar.masked_fill(~same, -math.inf).max(dim=1, keepdim=True).values
        rank = ((similar > best) & ~same).sum(dim=1)
        found |= {f"{name} at {k}": round(float((rank < k).float().mean()), 4) for k in at}
    others = len(part.texts)
    found["chance at 1"], found["chance at 5"] = (round(min(1.0, k / others), 4) for k in at)
    return found
