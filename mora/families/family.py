"""What the rest of the library asks of a CLIP, whatever library it comes from."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mora.families.site import Site
from mora.hooks import library_hook, watched
from mora.linear import MoraLinear


class Family(ABC):
    """One library's way to build a CLIP: where its blocks are, and how its towers are called."""

    name: str
    looked_for: str

    @abstractmethod
    def matches(self, model: Any) -> bool:
        """Whether `model` is of this family."""

    @abstractmethod
    def unsupported(self, model: Any) -> list[str]:
        """Why a model of this family cannot be adapted, a reason each; empty when all of the library works on it."""

    @abstractmethod
    def towers(self, model: Any) -> dict[str, list[Site]]:
        """Every block's site from bottom to top, by modality; raises ValueError for a tower that has none."""

    @abstractmethod
    def encode_image(self, model: Any, image: Tensor) -> Tensor:
        """Un-normalised image embeddings [B, e] of preprocessed images [B, 3, H, W]."""

    @abstractmethod
    def encode_text(self, model: Any, text: Tensor) -> Tensor:
        """Un-normalised text embeddings [B, e] of token ids [B, L]."""

    @abstractmethod
    def embedding_size(self, model: Any) -> int:
        """e, the width of both embeddings."""

    @abstractmethod
    def image_size(self, model: Any) -> tuple[int, int]:
        """Height and width of a preprocessed image."""

    @abstractmethod
    def normalisation(self, model: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, with which the model's own preprocessing ends."""

    @abstractmethod
    def empty_text(self, model: Any) -> Tensor:
        """The substitute of a missing text: the token ids of "", [L] int64; ValueError when they cannot be known."""

    @abstractmethod
    def text_frame(self, model: Any) -> tuple[int, int, int] | None:
        """(begin, end, padding): tokens of a text that is pooled at its end token; None where it is pooled elsewhere.

        Only the end token has to be the tokenizer's.
        """

    @abstractmethod
    def vocabulary(self, model: Any) -> tuple[int, int]:
        """Number of tokens, and length of a text."""

    @abstractmethod
    def block_arguments(self, model: Any, modality: str, hidden: Tensor) -> dict[str, Any]:
        """Keyword arguments of one block's call on hidden rows [B, L, d]: the mask of that length."""

    @abstractmethod
    def pooled_rows(self, model: Any, modality: str, hidden: Tensor, text: Tensor | None) -> Tensor | None:
        """Which row of each sample becomes the embedding, int64 [B]; None when it is not one row."""

    @abstractmethod
    def needs_all_tokens(self, model: Any, modality: str) -> str:
        """Why the last block cannot run for the pooled row alone, in words; "" when it can."""

    @abstractmethod
    def needs_full_texts(self, model: Any) -> str:
        """Why texts cannot be cut after their last token that counts, in words; "" when they can."""

    @abstractmethod
    def text_ends(self, model: Any, text: Tensor) -> Tensor:
        """The last token of each text that can reach its embedding, int64 [B]; only where texts can be cut."""

    @abstractmethod
    def pooled_block(self, block: Any, hidden: Tensor, rows: Tensor, arguments: dict[str, Any]) -> Tensor | None:
        """One block's output at the given rows only, [B, 1, d]: k and v of every row, the rest of one.

        None when the block cannot be split that way.
        """

    @abstractmethod
    def project(self, model: Any, modality: str, hidden: Tensor, rows: Tensor | None) -> Tensor:
        """Final norm, pooling and projection: the last block's output [B, L, d] to embeddings [B, e]."""

    def blocks(self, model: Any, modality: str, first: int) -> list[nn.Module]:
        """The blocks of one tower from `first` on; raises ValueError for an unknown modality or index."""
        towers = self.towers(model)
        if modality not in towers:
            raise ValueError(f"modality: got {modality!r}, expected one of {', '.join(map(repr, towers))}")
        depth = len(towers[modality])
        if not 0 <= first <= depth:
            raise ValueError(f"first: got {first}, expected a block index from 0 to {depth} of the {modality} tower")
        return [site.block for site in towers[modality][first:]]

    def around_blocks(self, model: Any, modality: str) -> list[nn.Module]:
        """The modules that hold a tower's blocks and call them: what a tower that is cut does not call."""
        try:
            sites = self.towers(model).get(modality, [])
        except ValueError:  # attention of another library, which is never cut
            return []
        path = sites[0].path.split(".") if sites else []
        modules = [model.get_submodule(".".join(path[:depth])) for depth in range(1, len(path))]
        inside = modules.index(sites[0].block) if sites else 0
        return modules[:inside]

    def enter(self, model: Any, modality: str, inputs: Tensor) -> Tensor:
        """Run one whole tower on its inputs; where texts can be cut, also on texts shorter than the context."""
        return self.encode_image(model, inputs) if modality == "image" else self.encode_text(model, inputs)

    @abstractmethod
    def run_block(self, model: Any, modality: str, block: Any, hidden: Tensor, arguments: Any, lean: bool) -> Tensor:
        """One block's output [B, L, d], with gradient checkpointing where the model has it on.

        `lean`: where it is off, a frozen feed-forward layer keeps one tensor for the backward pass (`feed_forward`).
        """

    def prefix(self, model: Any, modality: str, inputs: Tensor, first: int, frozen: bool = True) -> Tensor:
        """What enters block `first` of a tower, [B, L, d]; `first` counts from 0, and past the last block it is [B, e].

        The part that frozen blocks compute: in eval mode, without gradient, in the caller's precision (autocast).

        Args:
            model: a CLIP of this family, patched or not.
            modality: "image" or "text".
            inputs: preprocessed images [B, 3, H, W] or token ids [B, L].
            first: index of the first block that is not run.
            frozen: False runs with gradient and in the mode the model is in: for blocks that are trained.

        Raises ValueError for an unknown modality or index.
        """
        blocks = self.blocks(model, modality, first)
        reached: list[Tensor] = []

        def stop(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            reached.append(args[0] if args else kwargs["hidden_states"])
            raise BlockReached

        handle = blocks[0].register_forward_pre_hook(own(stop), prepend=True, with_kwargs=True) if blocks else None
        try:
            with evaluating(model) if frozen else nullcontext(), torch.no_grad() if frozen else nullcontext():
                return self.enter(model, modality, inputs)
        except BlockReached:
            return reached[0]
        finally:
            if handle is not None:
                handle.remove()

    def suffix(
        self,
        model: Any,
        modality: str,
        hidden: Tensor,
        first: int,
        text: Tensor | None = None,
        pooled_only: bool = True,
        lean: bool = False,
    ) -> Tensor:
        """The rest of the tower: embeddings [B, e] from what `prefix` returned, in the mode the model is in.

        Args:
            model: the CLIP that made the prefix, patched or not.
            modality: "image" or "text".
            hidden: [B, L, d]; texts may be trimmed after their end token where attention is causal.
            first: index of the first block to run, as given to `prefix`.
            text: the token ids [B, L] of `hidden`; needed where the text is pooled at its end token.
            pooled_only: run the last block for the pooled row only (k and v for all): the same up to rounding.
            lean: keep less for the backward pass of frozen layers: the same up to rounding. A block on which somebody
                registered hooks runs as it is, whatever these say.

        Raises ValueError for an unknown modality or index, for `text` absent or of another length, and for towers
        whose mask depends on padding or on a class token of their own.
        """
        blocks = self.blocks(model, modality, first)
        if not blocks:
            return hidden
        if modality == "text" and text is not None and tuple(text.shape) != tuple(hidden.shape[:2]):
            raise ValueError(f"text: got shape {tuple(text.shape)}, expected {tuple(hidden.shape[:2])}, that of hidden")
        arguments = self.block_arguments(model, modality, hidden)
        rows = self.pooled_rows(model, modality, hidden, text)
        for block in blocks[:-1]:
            hidden = self.run_block(model, modality, block, hidden, arguments, lean and not watched(block))
        pooled = None
        plain = not watched(blocks[-1])
        if pooled_only and plain and rows is not None:
            pooled = self.pooled_block(blocks[-1], hidden, rows, arguments)
        if pooled is None:
            hidden = self.run_block(model, modality, blocks[-1], hidden, arguments, lean and plain)
            return self.project(model, modality, hidden, rows)
        return self.project(model, modality, pooled, None if rows is None else torch.zeros_like(rows))

    def white_image(self, model: Any) -> Tensor:
        """The substitute of a missing image: white, preprocessed, [3, H, W] float32."""
        mean, std = self.normalisation(model)
        return white(self.image_size(model), mean, std)

    def random_image(self, model: Any, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Random preprocessed images [batch, 3, H, W] float32."""
        return torch.randn(batch, 3, *self.image_size(model), generator=generator)

    def random_text(self, model: Any, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Random token ids [batch, L] that the text tower can pool, ending at places of their own."""
        size, length = self.vocabulary(model)
        tokens = torch.randint(1, max(2, size - 2), (batch, length), generator=generator)
        frame = self.text_frame(model)
        if frame is None:
            return tokens
        begin, end, padding = frame
        tokens = tokens.masked_fill(tokens == end, begin)
        places = torch.arange(1, batch + 1)[:, None] * length // (batch + 1)
        places, each = places.clamp(min=1, max=length - 1), torch.arange(length)
        tokens = tokens.where(each < places, torch.full_like(tokens, padding).where(each > places, torch.tensor(end)))
        tokens[:, 0] = begin
        return tokens


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
    """A projection of an x that only it reads: its siblings among q, k, v see another one."""
    return projection.alone(x) if isinstance(projection, MoraLinear) else projection(x)


def pick(hidden: Tensor, rows: Tensor) -> Tensor:
    """Row `rows[b]` of every sample b, [B, d]."""
    return hidden[torch.arange(len(hidden), device=hidden.device), rows]


def text_needed(pool: str) -> ValueError:
    """The error for a text tower that pools at a token it cannot see."""
    return ValueError(f"text: got None, expected the token ids [B, L]: the text tower pools by {pool!r}")


def white(size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """A white image after channel normalisation, [3, H, W]."""
    channels = (1.0 - torch.tensor(mean)) / torch.tensor(std)
    return channels[:, None, None].expand(3, *size).clone()


def block_sites(
    modality: str, blocks: nn.ModuleList, name: str, path: str, site: type[Site], fits: Callable[[nn.Module], bool]
) -> list[Site]:
    """One site per block, whose attention is attribute `name`; raises ValueError where it is missing."""
    sites: list[Site] = []
    for layer, block in enumerate(blocks):
        where = f"{path}.{layer}.{name}"
        attention = getattr(block, name, None)
        if attention is None or not fits(attention):
            raise ValueError(
                f"model: looked for an attention with q, k, v at {where}, found {type(attention).__name__}"
            )
        sites.append(site(modality, layer, block, name, where))
    return sites


def descend(model: Any, path: str) -> nn.Module | None:
    """The module at a dotted path, or None."""
    found: nn.Module | None = model
    for name in path.split("."):
        found = getattr(found, name, None)
    return found
