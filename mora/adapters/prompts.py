"""Learned prompts by what each row lacks: rows that stand before a sample's own in the first blocks of every tower.

`mmp`: missing-aware prompts (Lee et al., CVPR 2023, arXiv 2303.03369), in the two towers of a CLIP. `dcp`: deep
correlated prompts (Hu et al., NeurIPS 2024, arXiv 2410.06558). docs/training.md says what differs from the papers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mora.patterns import patterns_of
from mora.system.checks import is_whole
from mora.towers.find import cut_towers_of
from mora.towers.front import Front

MMP, DCP = "mmp", "dcp"
NAME = "prompts"  # of the module in the model
STD, NARROWER, THIRDS = 0.02, 16, 3
MOST_PROMPTS = 4096  # in front of a sample, and blocks


class PromptSize(NamedTuple):
    """How many prompts stand before a sample's own rows, and in how many blocks from the first one they are renewed."""

    length: int = 36
    depth: int = 6


class Prompts(nn.Module, ABC):
    """Prompts of a model's towers; which of them a row gets is its pattern's place in `mora.patterns.patterns_of`.

    Args:
        widths: d of each tower's rows, by modality, in the order of the towers.
        size: length, and blocks with prompts of their own.
        like: dtype (float32 at least) and device of the parameters.
    """

    least: ClassVar[int] = 1  # the fewest prompts it can do with

    def __init__(self, widths: Mapping[str, int], size: PromptSize, like: Tensor) -> None:
        super().__init__()
        self.widths, self.size = dict(widths), size
        self.patterns = patterns_of(widths)
        self.make()
        self.to(like.device, torch.promote_types(like.dtype, torch.float32))

    @abstractmethod
    def make(self) -> None:
        """Draw the parameters, from torch's global generator."""

    @abstractmethod
    def renewed(self, modality: str) -> Tensor:
        """The prompts [K, D, N, d] of a tower that every block renews, of each of the K patterns."""

    def kept(self, modality: str, patterns: Tensor, hidden: Tensor, ends: Tensor | None) -> Tensor | None:
        """Prompts [B, M, d] of a tower that enter its first block and stay; arguments as of `front`."""
        return None

    def front(self, modality: str, patterns: Tensor, hidden: Tensor, ends: Tensor | None) -> Front:
        """What stands before rows [B, L, d] that enter the first block of a tower.

        Args:
            modality: of the tower.
            patterns: int64 [B], of each row.
            hidden: the rows.
            ends: int64 [B], the last of each that counts; None: all do.
        """
        return Front(self.renewed(modality), patterns, self.kept(modality, patterns, hidden, ends))

    def complete(self, count: int, device: torch.device) -> Tensor:
        """The patterns [B] of rows that have everything."""
        return torch.full((count,), len(self.patterns) - 1, device=device)

    def lacking(self, modality: str) -> int:
        """The pattern of rows that lack one modality and have the others."""
        return self.patterns.index(tuple(name for name in self.widths if name != modality))


class MissingAware(Prompts):
    """Prompts of every pattern, tower and block, each learned by itself."""

    def make(self) -> None:
        shape = len(self.patterns), self.size.depth, self.size.length
        self.tokens = nn.ParameterDict({name: drawn(*shape, width) for name, width in self.widths.items()})

    def renewed(self, modality: str) -> Tensor:
        return self.tokens[modality]


class Correlated(Prompts):
    """A third of the prompts each: correlated, common and dynamic.

    Correlated: block i has MLP_i(LN_i([p_1; p_2; ...])), p_m being block i - 1's of tower m; before the first block
    there are learned ones of each tower, for rows that have its modality and for those that lack it. Common: learned by
    pattern, projected into every tower by an MLP of its own. Dynamic: learned queries, by pattern, that attend to the
    rows which enter the first block. Common and dynamic ones enter the first block and stay.
    """

    least = THIRDS

    def make(self) -> None:
        third, total, narrowest = self.size.length // THIRDS, sum(self.widths.values()), min(self.widths.values())
        first, count = self.size.length - 2 * third, len(self.patterns)
        each = self.widths.items()
        self.first = nn.ParameterDict({name: drawn(2, first, width) for name, width in each})
        self.common = drawn(count, third, narrowest)
        self.queries = nn.ParameterDict({name: drawn(count, third, width) for name, width in each})
        self.correlate = nn.ModuleDict(
            {
                name: nn.ModuleList(
                    nn.Sequential(nn.LayerNorm(total), *bottleneck(total, width)) for _ in range(self.size.depth)
                )
                for name, width in each
            }
        )
        self.project = nn.ModuleDict({name: nn.Sequential(*bottleneck(narrowest, width)) for name, width in each})
        self.attend = nn.ModuleDict({name: nn.MultiheadAttention(width, 1, batch_first=True) for name, width in each})

    def renewed(self, modality: str) -> Tensor:
        rows = {m: torch.stack([self.first[m][int(m in pattern)] for pattern in self.patterns]) for m in self.widths}
        found = []
        for layer in range(self.size.depth):
            joined = torch.cat([*rows.values()], dim=-1)
            rows = {name: self.layers(name)[layer](joined) for name in rows}
            found.append(rows[modality])
        return torch.stack(found, dim=1)

    def layers(self, modality: str) -> nn.ModuleList:
        """The networks that make a tower's correlated prompts, by block."""
        found = self.correlate[modality]
        assert isinstance(found, nn.ModuleList)
        return found

    def kept(self, modality: str, patterns: Tensor, hidden: Tensor, ends: Tensor | None) -> Tensor:
        common = self.project[modality](self.common)[patterns]
        queries = self.queries[modality][patterns]
        hidden = hidden.to(queries.dtype)
        behind = None if ends is None else torch.arange(hidden.shape[1], device=hidden.device) > ends[:, None]
        dynamic, _ = self.attend[modality](queries, hidden, hidden, key_padding_mask=behind, need_weights=False)
        return torch.cat([common, dynamic], dim=1)


KINDS: dict[str, type[Prompts]] = {MMP: MissingAware, DCP: Correlated}


def drawn(*shape: int) -> nn.Parameter:
    """A parameter of N(0, 0.02)."""
    return nn.Parameter(torch.randn(*shape) * STD)


def bottleneck(width: int, out: int) -> Sequence[nn.Module]:
    """An MLP from one width to another through a sixteenth of the first."""
    narrow = max(1, width // NARROWER)
    return nn.Linear(width, narrow), nn.GELU(), nn.Linear(narrow, out)


def check_size(kind: str, size: PromptSize) -> None:
    """Raise ValueError for too few prompts of a kind, or too many."""
    for name, value, least in (("prompt_length", size.length, KINDS[kind].least), ("prompt_depth", size.depth, 1)):
        if not is_whole(value) or not least <= value <= MOST_PROMPTS:
            raise ValueError(
                f"{name}: got {value!r} for method {kind!r}, expected a whole number from {least} to {MOST_PROMPTS:,}"
            )


def add_prompts(model: nn.Module, kind: str, size: PromptSize) -> Prompts:
    """Put prompts of a kind into a model, as its module `prompts`; its towers run with them in a classifier alone.

    Raises ValueError for towers that take none, a model that has prompts, or a size out of bounds.
    """
    check_size(kind, size)
    if hasattr(model, NAME):
        raise ValueError(f"model: got a {type(model).__name__} that has {NAME} already, expected one without")
    towers = cut_towers_of(model)
    if others := [f"{tower.modality} ({tower.kind})" for tower in towers.values() if not tower.fronts]:
        raise ValueError(
            f"model: got towers that take no prompts: {', '.join(others)}; expected open_clip's own transformers or "
            "Hugging Face's CLIP"
        )
    depth = min(size.depth, *(len(tower.blocks(model)) for tower in towers.values()))
    widths = {modality: tower.slots(model)[0].width(("q",)) for modality, tower in towers.items()}
    made = KINDS[kind](widths, PromptSize(size.length, depth), next(model.parameters()))
    model.add_module(NAME, made)
    return made


def prompts_of(model: nn.Module) -> Prompts | None:
    """The prompts in a model; None where it has none."""
    found = getattr(model, NAME, None)
    return found if isinstance(found, Prompts) else None
