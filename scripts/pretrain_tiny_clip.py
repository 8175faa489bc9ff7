"""Pretrain the tiny CLIP of ``mora/tiny`` on named drawings with the contrastive loss.

    mkdir icons && cd icons && npm install PACKAGES   # the list of scripts/tiny_clip_data.py
    apt-get download openclipart-svg && dpkg-deb -x openclipart-svg_*.deb clipart
    python scripts/pretrain_tiny_clip.py --icons icons/node_modules \\
        --clip-art clipart/usr/share/openclipart/svg --work FOLDER

Every drawing comes with two texts: its name with keywords, and a second one of keywords alone. Image and first text,
image and second text, and the two texts are contrasted; texts of the same name count as positives. Drawings of 2 % of
the names are held out to report retrieval; nothing is chosen by it: the weights of the last step are packaged.
``--work`` keeps rendered drawings and checkpoints. A run that stopped goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny_clip_data
import torch
import torch.nn.functional as F
from safetensors.torch import save
from tiny_clip_data import Item
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import mora.tiny

SEED = 0
PACKAGE = Path(mora.tiny.__file__).parent
MERGES = 2500
CLIP_ART_SHARE = 0.4  # of the drawn samples: it has colours, icons have none
HELD_OUT = 50  # one name of so many
TEXT_PAIR_WEIGHT = 0.5
DIRECTED = re.compile(r"left|right|arrow|flag|button|letter|clock|thirty|text|number|sign")


def train_merges(texts: list[str], path: Path) -> None:
    """A byte-pair vocabulary of ``texts`` in the file format of CLIP's tokenizer."""
    pattern = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = 2 * len(alphabet) + 4 * MERGES
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=sorted(alphabet), end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    merges = json.loads(bpe.to_str())["model"]["merges"][:MERGES]
    lines = ["#version: mora tiny", *(" ".join(pair) for pair in merges)]
    with open(path, "wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as file:
        file.write("\n".join(lines).encode())


class Texts:
    """Draws the two token rows of an item; words are tokenised once."""

    def __init__(self, items: list[Item], rng: random.Random) -> None:
        self.items, self.rng = items, rng
        self.ids: dict[str, list[int]] = {}
        self.tokenizer = mora.tiny.tokenizer()
        self.comma = self.tokenizer.encode(",")

    def encode(self, parts: list[str]) -> list[int]:
        """Tokens of the parts joined by commas, with start and end, padded to the context."""
        row = [self.tokenizer.sot_token_id]
        for position, part in enumerate(parts):
            if part not in self.ids:
                self.ids[part] = self.tokenizer.encode(part)
            row += self.comma * (position > 0) + self.ids[part]
        row = [*row[: mora.tiny.CONTEXT_LENGTH - 1], self.tokenizer.eot_token_id]
        return row + [0] * (mora.tiny.CONTEXT_LENGTH - len(row))

    def pair(self, index: int) -> tuple[list[int], list[int], str]:
        """First and second text of an item, and what makes second texts equal."""
        item, rng = self.items[index], self.rng
        tags = list(item.tags)
        kept = [tag for tag in tags if rng.random() < rng.choice((0.3, 0.6, 1.0))]
        if rng.random() < 0.5:
            rng.shuffle(kept)
        name = [] if kept and rng.random() < 0.15 else [item.name]
        first = self.encode(name + kept)
        other = rng.sample(tags, min(len(tags), rng.randint(1, 3))) or [item.name]
        return first, self.encode(other), "|".join(sorted(other))


def sampling_weights(items: list[Item]) -> Tensor:
    """Shares by kind; drawings of one source and name together count as the square root of their number."""
    alike = Counter((item.source, item.name) for item in items)
    raw = torch.tensor([1 / math.sqrt(alike[item.source, item.name]) for item in items])
    art = torch.tensor([item.source == "openclipart" for item in items])
    shares = torch.where(art, CLIP_ART_SHARE / raw[art].sum(), (1 - CLIP_ART_SHARE) / raw[~art].sum())
    return raw * shares


def augment(images: Tensor, icon: Tensor, flippable: Tensor, generator: torch.Generator) -> Tensor:
    """Random shift, scale, turn, flip and colours of uint8 [N, 3, S, S]; icons [N] get an ink colour."""
    n = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    ink = 1 - images.float() / 255  # zero is white, so that padding is white too
    scale = torch.where(icon, uniform(1.0, 1.7), uniform(0.85, 1.2))
    angle = uniform(-0.2, 0.2)
    mirror = torch.where(flippable & (uniform(0, 1) < 0.5), -1.0, 1.0)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [cos * mirror, -sin, uniform(-0.15, 0.15), sin * mirror, cos, uniform(-0.15, 0.15)]
    theta = torch.stack(rows, dim=1).view(n, 2, 3)
    grid = F.affine_grid(theta, list(ink.shape), align_corners=False)
    ink = F.grid_sample(ink, grid, align_corners=False)
    colour = uniform(0, 0.7, 3, 1, 1) * (uniform(0, 1, 1, 1, 1) < 0.5)  # half stay black
    jitter = uniform(0.75, 1.25, 3, 1, 1)
    ink = torch.where(icon.view(n, 1, 1, 1), ink * (1 - colour), ink * jitter)
    grey = (uniform(0, 1, 1, 1, 1) < 0.1).float()
    ink = ink * (1 - grey) + ink.mean(dim=1, keepdim=True) * grey
    return ((1 - ink).clamp(0, 1) * 255).round().to(torch.uint8)


def contrast(a: Tensor, b: Tensor, scale: Tensor, positive: Tensor) -> Tensor:
    """Symmetric cross-entropy of the similarities [N, N] against the rows' shared positives."""
    logits = scale * F.normalize(a.float(), dim=1) @ F.normalize(b.float(), dim=1).T
    target = positive.float()
    forward = F.cross_entropy(logits, target / target.sum(dim=1, keepdim=True))
    backward = F.cross_entropy(logits.T, target.T / target.T.sum(dim=1, keepdim=True))
    return (forward + backward) / 2


def same(left: list[str], right: list[str]) -> Tensor:
    """Bool [N, N]: equal strings."""
    index = {word: position for position, word in enumerate(dict.fromkeys(left + right))}
    rows, columns = (torch.tensor([index[word] for word in words]) for words in (left, right))
    return rows[:, None] == columns[None, :]


@dataclass
class Batches:
    """Draws a training batch by step number alone, so that a resumed run repeats nothing."""

    items: list[Item]
    images: Tensor
    size: int

    def __post_init__(self) -> None:
        self.weights = sampling_weights(self.items)
        self.texts = Texts(self.items, random.Random())
        self.icon = torch.tensor([item.source != "openclipart" for item in self.items])
        self.flippable = torch.tensor([not DIRECTED.search(item.name) for item in self.items])

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Pixels [N, 3, S, S], two token blocks [N, L], and the positives of each."""
        generator = torch.Generator().manual_seed(SEED * 1_000_003 + step)
        self.texts.rng.seed(SEED * 1_000_003 + step)
        index = torch.multinomial(self.weights, self.size, replacement=False, generator=generator)
        chosen = [self.items[i] for i in index]
        drawn = [self.texts.pair(int(i)) for i in index]
        names = [item.name for item in chosen]
        seconds = [second for _, _, second in drawn]
        alike = same(names, names)
        pixels = augment(self.images[index], self.icon[index], self.flippable[index], generator)
        second_positive = alike | same(seconds, seconds)
        first, second = (torch.tensor([row[i] for row in drawn]) for i in (0, 1))
        return pixels, first, second, alike, second_positive


def held_out(item: Item) -> bool:
    """Whether the drawing's name is one of those that are kept from training."""
    return int(hashlib.sha256(item.name.encode()).hexdigest(), 16) % HELD_OUT == 0


@torch.no_grad()
def recall(model: Any, drawings: dict[str, Tensor]) -> dict[str, float]:
    """Share of pictures whose own name is the nearest, or among the five nearest, of all names held out."""
    _, preprocess = mora.tiny.build()
    model.eval()
    image = F.normalize(model.encode_image(preprocess(torch.stack(list(drawings.values())))), dim=1)
    text = F.normalize(model.encode_text(mora.tiny.tokenizer()(list(drawings))), dim=1)
    model.train()
    similar = image @ text.T
    rank = (similar > similar.diagonal()[:, None]).sum(dim=1)
    return {f"recall at {k}": round((rank < k).float().mean().item(), 4) for k in (1, 5)}


def schedule(step: int, steps: int) -> float:
    """Linear warm-up over 5 % of the steps, then cosine to zero."""
    warm = max(1, steps // 20)
    return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / steps)))


def train(arguments: argparse.Namespace, batches: Batches, report: Callable[[int, Any], None]) -> dict[str, Tensor]:
    """The whole run; returns the last weights."""
    torch.manual_seed(SEED)
    model, preprocess = mora.tiny.build(patch_dropout=0.5)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.2}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=arguments.rate, betas=(0.9, 0.98), eps=1e-6)
    last = arguments.work / "last.pt"
    state = {"step": 0, "seconds": 0.0}
    if last.exists():
        saved = torch.load(last, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        state = saved["state"]
    began = time.monotonic() - state["seconds"]
    for step in range(int(state["step"]), arguments.steps):
        pixels, first, second, alike, second_positive = batches(step)
        torch.manual_seed(SEED * 1_000_003 + step)  # patch dropout, whether resumed or not
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * schedule(step, arguments.steps)
        with sdpa_kernel(SDPBackend.MATH):  # faster on a CPU
            image = model.encode_image(preprocess(pixels))
            name, other = model.encode_text(torch.cat([first, second])).chunk(2)
        scale = model.logit_scale.exp()
        loss = contrast(image, name, scale, alike) + contrast(image, other, scale, second_positive)
        loss = loss + TEXT_PAIR_WEIGHT * contrast(name, other, scale, second_positive)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        state |= {"step": step + 1, "seconds": time.monotonic() - began}
        if (step + 1) % 20 == 0:
            seconds = f"{state['seconds']:.0f} s"
            print(f"step {step + 1} {seconds} loss {loss.item():.3f} scale {scale:.1f}", flush=True)
        if (step + 1) % arguments.every == 0 or step + 1 == arguments.steps:
            report(step + 1, model)
            saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": state}
            torch.save(saved, last.with_suffix(".tmp"))
            os.replace(last.with_suffix(".tmp"), last)
    return model.state_dict()


def main() -> None:
    """Draw, train, and write merges and weights into ``mora/tiny``."""
    parser = argparse.ArgumentParser(description="Pretrain the tiny CLIP.")
    parser.add_argument("--icons", type=Path, required=True, help="node_modules with the icon sets")
    parser.add_argument("--clip-art", type=Path, required=True, help="usr/share/openclipart/svg of the package")
    parser.add_argument("--work", type=Path, required=True, help="rendered drawings, checkpoints")
    parser.add_argument("--steps", type=int, default=750)
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--every", type=int, default=300, help="steps between checkpoints")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    drawings = arguments.work / "drawings.safetensors"
    items, images = tiny_clip_data.load(arguments.icons, arguments.clip_art, mora.tiny.IMAGE_SIZE, drawings)
    fit = [not held_out(item) for item in items]
    known = [item for item, kept in zip(items, fit, strict=True) if kept]
    train_merges([", ".join((item.name, *item.tags)) for item in known], PACKAGE / "merges.txt.gz")
    rest = {item.name: image for item, image, kept in zip(items, images, fit, strict=True) if not kept}
    print(f"{len(known)} drawings to learn, {len(items) - len(known)} held out: {len(rest)} names", flush=True)
    batches = Batches(known, images[torch.tensor(fit)], arguments.batch)

    def report(step: int, model: Any) -> None:
        print(f"step {step}: {recall(model, rest)}", flush=True)

    weights = {name: weight.half() for name, weight in train(arguments, batches, report).items()}
    temporary = PACKAGE / "tiny.tmp"
    temporary.write_bytes(save(weights))
    os.replace(temporary, PACKAGE / "tiny.safetensors")


if __name__ == "__main__":
    main()
