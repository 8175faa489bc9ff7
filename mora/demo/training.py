"""One run: adapters and a linear head on the prefixes, the best validation epoch kept, then tested as it is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mora.data.missing import IMAGE_MISSING, TEXT_MISSING, missing_table
from mora.data.tables import table_seed
from mora.demo.methods import adapt
from mora.demo.prefixes import Part, Prefixes
from mora.demo.settings import Settings
from mora.towers.find import cut_towers_of, towers_of

CONDITIONS = ("complete", "image", "text", "both")


@dataclass
class Run:
    """What one method did with one seed; accuracies are shares of 1, `test` and `macro` by condition."""

    method: str
    seed: int
    parameters: int
    losses: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best_epoch: int = 0
    test: dict[str, float] = field(default_factory=dict)
    macro: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    state: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def best(self) -> float:
        """Validation accuracy of the epoch that was kept."""
        return self.validation[self.best_epoch - 1]


class Embedder:
    """[image; text] embeddings of rows of one part, by what stands above the frozen blocks.

    A missing modality costs one row per call, the substitute's; in training its dropout mask is shared by that batch.
    """

    def __init__(self, model: Any, first: dict[str, int]) -> None:
        self.model, self.first, self.towers = model, first, cut_towers_of(model)

    def __call__(self, part: Part, rows: Tensor, missing: Tensor) -> Tensor:
        """[B, 2 e] of rows int64 [B] under a missing table's values [B]."""
        image = self.tower("image", part, rows, missing != IMAGE_MISSING)
        text = self.tower("text", part, rows, missing != TEXT_MISSING)
        return torch.cat([image, text], dim=-1)

    def tower(self, modality: str, part: Part, rows: Tensor, present: Tensor) -> Tensor:
        """[B, e] of one modality; texts are cut after the longest one's end, which causal attention allows."""
        wanted, position = rows[present], present.cumsum(0) - 1
        if not bool(present.all()):
            wanted = torch.cat([wanted, wanted.new_tensor([len(part)])])  # the substitute's row
            position = torch.where(present, position, len(wanted) - 1)
        if modality == "image":
            return self.towers["image"].suffix(self.model, part.image[wanted], self.first["image"])[position]
        tokens = part.tokens[wanted]
        length = int(tokens.argmax(dim=-1).max()) + 1
        hidden, tokens = part.text[wanted, :length], tokens[:, :length]
        return self.towers["text"].suffix(self.model, hidden, self.first["text"], tokens)[position]


@torch.no_grad()
def embed_all(embedder: Embedder, part: Part, batch: int = 128) -> tuple[Tensor, Tensor]:
    """Embeddings [N + 1, e] of every image and of every text, the substitute's last, in eval mode."""
    embedder.model.eval()
    rows = torch.arange(len(part) + 1, device=part.labels.device)
    there = torch.ones_like(rows, dtype=torch.bool)
    image, text = (
        torch.cat([embedder.tower(m, part, chunk, there[: len(chunk)]) for chunk in rows.split(batch)])
        for m in ("image", "text")
    )
    return image, text


def combine(embeddings: tuple[Tensor, Tensor], missing: Tensor) -> Tensor:
    """[N, 2 e] of every row under a missing table [N]."""
    image, text = embeddings
    rows = torch.arange(len(missing), device=image.device)
    last = len(missing)
    return torch.cat(
        [
            image[rows.masked_fill(missing == IMAGE_MISSING, last)],
            text[rows.masked_fill(missing == TEXT_MISSING, last)],
        ],
        dim=-1,
    )


def table_of(part: Part, condition: str, rate: float, seed: int) -> Tensor:
    """The missing table of one condition on the part's device; "complete" lacks nothing."""
    kind, rate = ("both", 0.0) if condition == "complete" else (condition, rate)
    return missing_table(len(part), rate, kind, seed).to(part.labels.device)


def accuracies(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """(share of right rows, mean over the classes present of their share of right rows)."""
    right = (logits.argmax(dim=-1) == labels).double()
    per_class = torch.stack([right[labels == label].mean() for label in labels.unique()])
    return float(right.mean()), float(per_class.mean())


def optimiser(
    head: nn.Module, adapters: list[nn.Parameter], settings: Settings, learning_rate: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with linear warm-up and cosine decay per step; the head's recipe is the same for every method."""
    groups: list[dict[str, Any]] = [{"params": list(head.parameters()), "lr": settings.head_learning_rate}]
    if adapters:
        groups.append({"params": adapters, "lr": learning_rate})
    optimizer = torch.optim.AdamW(groups, betas=settings.betas, eps=1e-8, weight_decay=settings.weight_decay)
    warm = max(1, round(settings.warmup * steps))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def train(
    base: Any,
    prefixes: Prefixes,
    settings: Settings,
    method: str,
    seed: int,
    report: Callable[[int, float, float], None],
) -> Run:
    """Train one method with one seed and test its best validation epoch.

    Args:
        base: the pretrained CLIP, left as it is.
        prefixes: made with it, on the device of the settings.
        settings: the recipe.
        method: one of `METHODS`.
        seed: of the head, the adapters, the order of rows, dropout and the missing tables.
        report: told (epoch from 1, training loss, validation accuracy) after every epoch.
    """
    started = time.perf_counter()
    device = prefixes.train.labels.device
    torch.manual_seed(seed)
    width = sum(tower.width(base) for tower in towers_of(base).values())
    head = nn.Linear(width, len(prefixes.classes))
    nn.init.normal_(head.weight, std=0.02)
    model, adapters = adapt(base, method, settings)
    head, model = head.to(device), model.to(device)
    run = Run(method, seed, parameters=sum(p.numel() for p in adapters.values()))
    embedder = Embedder(model, prefixes.first)
    steps = settings.epochs * math.ceil(len(prefixes.train) / settings.batch)
    learning_rate = settings.choice(method).learning_rate
    optimizer, schedule = optimiser(head, list(adapters.values()), settings, learning_rate, steps)
    table = table_of(prefixes.train, settings.missing, settings.rate, table_seed(seed, "train"))
    held_out = table_of(prefixes.validation, settings.missing, settings.rate, table_seed(seed, "validation"))
    fixed = None if adapters else combine(embed_all(embedder, prefixes.train), table)
    order = torch.Generator().manual_seed(seed)
    for epoch in range(1, settings.epochs + 1):
        model.train()
        losses = []
        for rows in torch.randperm(len(prefixes.train), generator=order).to(device).split(settings.batch):
            features = embedder(prefixes.train, rows, table[rows]) if fixed is None else fixed[rows]
            loss = F.cross_entropy(head(features), prefixes.train.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        run.losses.append(float(torch.stack(losses).mean()))
        run.validation.append(validate(embedder, head, prefixes.validation, held_out))
        if run.validation[-1] > max(run.validation[:-1], default=-1.0):
            run.best_epoch, run.state = epoch, snapshot(head, adapters)
        report(epoch, run.losses[-1], run.validation[-1])
    restore(head, adapters, run.state)
    test(run, embedder, head, prefixes.test, settings)
    run.seconds = time.perf_counter() - started
    return run


@torch.no_grad()
def validate(embedder: Embedder, head: nn.Module, part: Part, table: Tensor) -> float:
    """Accuracy under a missing table; only rows that are there pass through the towers."""
    embedder.model.eval()
    chunks = torch.arange(len(part), device=table.device).split(128)
    logits = torch.cat([head(embedder(part, rows, table[rows])) for rows in chunks])
    return accuracies(logits, part.labels)[0]


@torch.no_grad()
def test(run: Run, embedder: Embedder, head: nn.Module, part: Part, settings: Settings) -> None:
    """Fill in the accuracies of the same trained model under every condition."""
    embeddings = embed_all(embedder, part)
    for condition in CONDITIONS:
        table = table_of(part, condition, settings.rate, table_seed(run.seed, "test"))
        run.test[condition], run.macro[condition] = accuracies(head(combine(embeddings, table)), part.labels)


def snapshot(head: nn.Module, adapters: dict[str, nn.Parameter]) -> dict[str, Any]:
    """Copies of what is trained, as NumPy arrays: they travel between processes by value."""
    tensors = {f"head.{name}": tensor for name, tensor in head.state_dict().items()} | dict(adapters)
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in tensors.items()}


@torch.no_grad()
def restore(head: nn.Module, adapters: dict[str, nn.Parameter], state: dict[str, Any]) -> None:
    """Put a snapshot back."""
    for name, tensor in [*((f"head.{n}", p) for n, p in head.named_parameters()), *adapters.items()]:
        tensor.copy_(torch.from_numpy(state[name]))
