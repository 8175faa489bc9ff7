"""Towers that can be cut in two: what frozen blocks compute, once, and the rest; the last block for one row."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mora.projection.site import Site
from mora.system.hooks import library_hook, watched
from mora.towers.front import Front
from mora.towers.layouts import Layout
from mora.towers.slots import Slot
from mora.towers.tower import Tower


@dataclass(frozen=True)
class CutTower(Tower):
    """A tower whose blocks stand in one list and can be run one by one, on hidden rows [B, L, d].

    Attributes:
        path: dotted path of that list in the model.
        layout: how a block's attention holds its projections.
        trims: whether inputs are token ids [B, L], a hidden row each, that may end before the context does.
        fronts: whether further rows may stand before its own in every block (`Front`).
    """

    path: str
    layout: ClassVar[Layout]
    trims: ClassVar[bool] = False
    fronts: ClassVar[bool] = False

    @abstractmethod
    def block_arguments(self, model: Any, hidden: Tensor) -> dict[str, Any]:
        """Keyword arguments of one block's call on hidden rows [B, L, d]: the mask of that length, at any L."""

    @abstractmethod
    def pooled_rows(self, model: Any, hidden: Tensor, tokens: Tensor | None) -> Tensor | None:
        """Which row of each sample becomes the embedding, int64 [B]; None when it is not one row."""

    @abstractmethod
    def needs_all_tokens(self, model: Any) -> str:
        """Why the last block cannot run for the pooled row alone, in words; "" when it can."""

    @abstractmethod
    def pooled_block(self, block: Any, hidden: Tensor, rows: Tensor, arguments: dict[str, Any]) -> Tensor | None:
        """One block's output at the given rows only, [B, 1, d]: k and v of every row, the rest of one.

        None when the block cannot be split that way.
        """

    @abstractmethod
    def run_block(self, model: Any, block: Any, hidden: Tensor, arguments: Any, lean: bool) -> Tensor:
        """One block's output [B, L, d], with gradient checkpointing where the model has it on.

        `lean`: where it is off, a frozen feed-forward layer keeps one tensor for the backward pass (`feed_forward`).
        """

    @abstractmethod
    def project(self, model: Any, hidden: Tensor, rows: Tensor | None) -> Tensor:
        """Final norm, pooling and projection: the last block's output [B, L, d] to embeddings [B, e]."""

    def needs_full_inputs(self, model: Any) -> str:
        """Why inputs cannot be cut after their last token that counts, in words; "" when they can: if it `trims`."""
        return "" if self.trims else "its inputs are no tokens"

    def ends(self, model: Any, tokens: Tensor) -> Tensor:
        """The last token of each input that can reach its embedding, int64 [B]; only where inputs can be cut."""
        rows = self.pooled_rows(model, tokens, tokens)
        assert rows is not None
        return rows

    def slots(self, model: Any) -> list[Slot]:
        blocks = ((f"{self.path}.{index}", block) for index, block in enumerate(self.list_of(model)))
        return self.layout.slots(self.modality, blocks)

    def list_of(self, model: Any) -> nn.ModuleList:
        """The module list that holds the blocks."""
        found: nn.ModuleList = model.get_submodule(self.path)
        return found

    def blocks(self, model: Any) -> list[nn.Module]:
        return list(self.list_of(model))

    def blocks_from(self, model: Any, first: int) -> list[nn.Module]:
        """The blocks from `first` on; raises ValueError for an index that is none."""
        blocks = self.blocks(model)
        if not 0 <= first <= len(blocks):
            raise ValueError(
                f"first: got {first}, expected a block index from 0 to {len(blocks)} of the {self.modality} tower"
            )
        return blocks[first:]

    def around(self, model: Any) -> list[nn.Module]:
        """The modules that hold the blocks and call them: what a tower that is cut does not call."""
        path = self.path.split(".")
        return [model.get_submodule(".".join(path[:depth])) for depth in range(1, len(path) + 1)]

    def enter(self, model: Any, inputs: Tensor) -> Tensor:
        """Run the whole tower on its inputs; where they can be cut, also on inputs shorter than the context."""
        return self.encode(model, inputs)

    def prefix(self, model: Any, inputs: Tensor, first: int, frozen: bool = True) -> Tensor:
        """What enters block `first`, [B, L, d]; `first` counts from 0, and past the last block it is [B, e].

        The part that frozen blocks compute: in eval mode, without gradient, in the caller's precision (autocast).

        Args:
            model: the model, patched or not.
            inputs: a batch of them.
            first: index of the first block that is not run.
            frozen: False runs with gradient and in the mode the model is in: for blocks that are trained.

        Raises ValueError for an unknown index.
        """
        blocks = self.blocks_from(model, first)
        reached: list[Tensor] = []

        def stop(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            reached.append(entering(args, kwargs))
            raise BlockReached

        handle = blocks[0].register_forward_pre_hook(own(stop), prepend=True, with_kwargs=True) if blocks else None
        try:
            with evaluating(model) if frozen else nullcontext(), torch.no_grad() if frozen else nullcontext():
                return self.enter(model, inputs)
        except BlockReached:
            return reached[0]
        finally:
            if handle is not None:
                handle.remove()

    def suffix(
        self,
        model: Any,
        hidden: Tensor,
        first: int,
        tokens: Tensor | None = None,
        pooled_only: bool = True,
        lean: bool = False,
        front: Front | None = None,
    ) -> Tensor:
        """The rest of the tower: embeddings [B, e] from what `prefix` returned, in the mode the model is in.

        Args:
            model: the model that made the prefix, patched or not.
            hidden: [B, L, d]; may be trimmed after their last token that counts, where inputs can be cut.
            first: index of the first block to run, as given to `prefix`.
            tokens: the token ids [B, L] of `hidden`; needed where they say which row is pooled.
            pooled_only: run the last block for the pooled row only (k and v for all): the same up to rounding.
            lean: keep less for the backward pass of frozen layers: the same up to rounding. A block on which somebody
                registered hooks runs as it is, whatever these say.
            front: rows that stand before those of `hidden` from block `first` on; none of them is pooled.

        Raises ValueError for an unknown index, for `tokens` absent or of another length, and for towers whose mask
        depends on padding or on a class token of their own.
        """
        blocks = self.blocks_from(model, first)
        if not blocks:
            return hidden
        if self.trims and tokens is not None and tuple(tokens.shape) != tuple(hidden.shape[:2]):
            raise ValueError(
                f"{self.modality}: got shape {tuple(tokens.shape)}, expected {tuple(hidden.shape[:2])}, that of hidden"
            )
        rows = self.pooled_rows(model, hidden, tokens)
        ahead = 0 if front is None else front.length
        hidden = hidden if front is None else front.enter(0, hidden)
        arguments = self.block_arguments(model, hidden)
        for index, block in enumerate(blocks[:-1], 1):
            hidden = self.run_block(model, block, hidden, arguments, lean and not watched(block))
            hidden = hidden if front is None else front.enter(index, hidden)
        pooled = None
        plain = not watched(blocks[-1])
        if pooled_only and plain and rows is not None:
            pooled = self.pooled_block(blocks[-1], hidden, rows + ahead, arguments)
        if pooled is None:
            hidden = self.run_block(model, blocks[-1], hidden, arguments, lean and plain)
            return self.project(model, hidden[:, ahead:], rows)
        return self.project(model, pooled, None if rows is None else torch.zeros_like(rows))

    def tokens_needed(self, pool: str) -> ValueError:
        """The error for a tower that pools at a token it cannot see."""
        return ValueError(
            f"{self.modality}: got None, expected the token ids [B, L]: the {self.modality} tower pools by {pool!r}"
        )


def entering(args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Tensor:
    """The hidden rows that a block is called with."""
    return args[0] if args else kwargs["hidden_states"]


def own(hook: Callable[..., None]) -> Callable[..., None]:
    """`hook` for calls of this thread alone: modules are everybody's."""
    thread = threading.get_ident()

    def guarded(*given: Any) -> None:
        if threading.get_ident() == thread:
            hook(*given)

    return library_hook(guarded)


class BlockReached(Exception):  # noqa: N818
    """Ends a tower's forward where `prefix` wants it to end."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode within the block, and as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def alone(projection: nn.Module, x: Tensor) -> Tensor:
    """A projection of an x that only it reads: the others of q, k, v see another one."""
    return projection.alone(x) if isinstance(projection, Site) else projection(x)


def pick(hidden: Tensor, rows: Tensor) -> Tensor:
    """Row `rows[b]` of every sample b, [B, d]."""
    return hidden[torch.arange(len(hidden), device=hidden.device), rows]
