"""Where a tower can be cut: which blocks are frozen, whether one row of the last is enough, where texts end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from mora.adapters.prompts import prompts_of
from mora.adapters.record import Adapters
from mora.towers.cutting import CutTower, entering, evaluating, own
from mora.towers.tower import Tower

# Relative L2 of a row between a tower and the same tower cut: more is another computation, not rounding.
SAME = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
# Random rows beside the substitute on which this is compared; texts among them end at different places.
PROBES = 2


@dataclass(frozen=True)
class Plan:
    """How one tower is run.

    Attributes:
        first: index of the first block that is trained; the number of blocks when none is.
        depth: number of blocks.
        frozen: whether nothing below `first` is trained or draws at random, so that it can be computed once.
        pooled: whether the last block can run for the pooled row alone.
        trimmed: whether inputs (texts) can be cut after their last token that counts.
        whole: why the tower is run from end to end as it is; "" when it is cut.
        reasons: why not, by what is not possible: "cache", "pooled", "trimmed".
    """

    first: int = 0
    depth: int = 0
    frozen: bool = False
    pooled: bool = False
    trimmed: bool = False
    whole: str = ""
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def ends_pooled(self) -> bool:
        """Whether every block is frozen and the last of them can run for the pooled row alone."""
        return self.frozen and self.pooled and self.first == self.depth > 0

    def lines(self, modality: str) -> list[str]:
        """What is saved in this tower and what is not, in words."""
        if self.whole:
            return [f"{modality}: runs from end to end: {self.whole}"]
        cached = f"blocks 0 to {self.first - 1} of {self.depth} frozen" if self.first else "no block frozen"
        parts = [cached if self.first < self.depth else f"all {self.depth} blocks frozen"]
        if self.pooled and (self.first < self.depth or self.ends_pooled):
            parts.append("last block for the pooled row only")
        if self.trimmed:
            parts.append(f"{modality}s trimmed")
        return [f"{modality}: {', '.join(parts)}", *(f"{modality}: no {k}: {v}" for k, v in self.reasons.items())]


def plan_of(model: Any, tower: Tower, substitute: Tensor, training: bool) -> Plan:
    """Find out by trying on the substitute [1, ...] of a missing input; random state and modes are left as they were.

    Args:
        model: the CLIP itself, patched or not.
        tower: of `model`.
        substitute: one row of inputs.
        training: whether the blocks below are also to be the same in training mode.
    """
    if not isinstance(tower, CutTower):
        return Plan(whole=f"towers of kind {tower.kind!r} run whole")
    devices = [substitute.device] if substitute.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.inference_mode(False):
            return cut(model, tower, substitute, training)
    except (ValueError, TypeError, AttributeError, RuntimeError, IndexError, NotImplementedError) as error:
        return Plan(whole=" ".join(str(error).split()) or type(error).__name__)


def cut(model: Any, tower: CutTower, substitute: Tensor, training: bool) -> Plan:
    """The plan of a tower that can be cut; any error says that it cannot."""
    tower.slots(model)  # raises where another library put its attention
    rows = with_probes(model, tower, substitute)
    first, depth, embedding = lowest_trained(model, tower, rows)
    plan = Plan(first=max(first, 0), depth=depth, frozen=first >= 0)
    reasons = {}
    if first < 0:
        reasons["cache"] = "what stands below the blocks is trained"
    elif first == 0 and depth:
        prompted = prompts_of(model) is not None
        reasons["cache"] = (
            "prompts enter the first block, by what a row lacks"
            if prompted
            else "the first block is adapted or trained"
        )
    elif training and not repeats(model, tower, substitute, first):
        plan, reasons["cache"] = replace(plan, frozen=False), drawn(model, tower, first)
    if why := tower.needs_all_tokens(model):
        reasons["pooled"] = why
    if tower.trims and (why := tower.needs_full_inputs(model)):
        reasons["trimmed"] = why
    plan = replace(
        plan, pooled="pooled" not in reasons, trimmed=tower.trims and "trimmed" not in reasons, reasons=reasons
    )
    difference, place = furthest(as_cut(model, tower, rows, plan), embedding)
    if not difference <= SAME.get(embedding.dtype, 1e-1):
        where = "its substitute" if place == 0 else "a random row"
        return Plan(whole=f"cut in two it gives another embedding of {where} (relative difference {difference:.1e})")
    return plan


def with_probes(model: Any, tower: CutTower, substitute: Tensor) -> Tensor:
    """The substitute [1, ...] and `PROBES` random rows under it, always the same."""
    generator = torch.Generator().manual_seed(0)
    probes = tower.random(model, PROBES, generator)
    if probes.shape[1:] != substitute.shape[1:]:
        return substitute
    return torch.cat([substitute, probes.to(substitute)])


def as_cut(model: Any, tower: CutTower, rows: Tensor, plan: Plan) -> Tensor:
    """Embeddings [B, e] of a tower that is cut as `plan` says, inputs ending after the longest one's end."""
    place = plan.depth - 1 if plan.ends_pooled else plan.first
    with torch.no_grad(), evaluating(model):
        if plan.trimmed:
            rows = rows[:, : int(tower.ends(model, rows).max()) + 1]
        hidden = tower.prefix(model, rows, place)
        return tower.suffix(model, hidden, place, rows if tower.trims else None, plan.pooled)


def furthest(found: Tensor, expected: Tensor) -> tuple[float, int]:
    """(relative L2 of the row [B, e] that differs most, which row); NaN where a row is not finite."""
    difference = torch.linalg.vector_norm((found - expected).double(), dim=-1)
    size = torch.linalg.vector_norm(expected.double(), dim=-1)
    relative = torch.where(difference == 0, difference, difference / size)
    return float(relative.max()), int(relative.argmax())


def lowest_trained(model: Any, tower: CutTower, inputs: Tensor) -> tuple[int, int, Tensor]:
    """(the first block that is trained or adapted, blocks, embedding); -1 when what stands below them is trained."""
    blocks = tower.blocks(model)
    needs: list[bool] = []

    def note(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        needs.append(entering(args, kwargs).requires_grad)

    hooks = [block.register_forward_pre_hook(own(note), with_kwargs=True) for block in blocks]
    try:
        with torch.enable_grad(), evaluating(model):
            embedding = tower.enter(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if len(needs) != len(blocks):
        raise ValueError(f"{len(needs)} of its {len(blocks)} blocks ran")
    first = [*needs, embedding.requires_grad].count(False) - 1
    record = getattr(model, "mora", None)
    if isinstance(record, Adapters):
        slots = [slot for one in record.every().values() for slot in one.slots()]
        first = min([first, *(slot.layer for slot in slots if slot.modality == tower.modality)])
    if prompts_of(model) is not None:
        first = min(first, 0)
    return first, len(blocks), embedding.detach()


def repeats(model: Any, tower: CutTower, inputs: Tensor, first: int) -> bool:
    """Whether the blocks below `first` give in training mode, twice, what they give in eval."""

    def once() -> Tensor:
        with torch.no_grad():
            return tower.prefix(model, inputs, first, frozen=False)

    with evaluating(model):
        expected = once()
    with all_training(model):
        found = [once(), once()]
    if any(rows.shape != expected.shape for rows in found) or not torch.equal(*found):
        return False
    difference = torch.linalg.vector_norm((found[0] - expected).double())
    return bool(difference <= SAME.get(expected.dtype, 1e-1) * torch.linalg.vector_norm(expected.double()))


def drawn(model: Any, tower: CutTower, first: int) -> str:
    """Why rows below `first` differ from call to call in training mode."""
    below = tower.blocks(model)[:first]
    drops = sum(isinstance(m, nn.Dropout) and m.p > 0 for block in below for m in block.modules())
    found = f" ({drops} dropouts in the blocks below {first})" if drops else ""
    return f"what runs below block {first} draws at random in training{found}"


@contextmanager
def all_training(model: nn.Module) -> Iterator[None]:
    """Every module in training mode within the block; modes and buffers (batch statistics) as they were afterwards."""
    before = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        for module, _ in before:
            module.training = True
        yield
    finally:
        for module, training in before:
            module.training = training
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
