"""Models of one stream: text and image tokens go through the same blocks, each adapted by the factors of its own.

Such a model is described as towers that share their blocks: the slots of two modalities stand at the same projections.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mora.bases import base_of
from mora.config import MoraConfig
from mora.methods.factors import CommonFactors
from mora.methods.shared_input import SharedInput
from mora.projection.adapted import Adapted
from mora.projection.site import Site
from mora.streams import Marked, Reader, Routes, StreamSite, TextFirst, route
from mora.streams.calls import routes_in
from mora.system.hooks import share_hooks
from mora.towers.adapted import adapted_at
from mora.towers.layouts import Separate
from mora.towers.slots import SeparateSlot, Slot
from mora.towers.stacks import OLD_VIT, VIT, names
from mora.towers.tower import Tower, descend
from mora.towers.usual import usual_mlp

LLAMA = names("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
DECODERS = ("language_model.layers", "language_model.model.layers", "text_model.layers")
# Tokens that stand for what an encoder saw or heard, by what a configuration calls them.
MARKS = (
    ("image_token_id", "image"),
    ("image_token_index", "image"),
    ("video_token_id", "image"),
    ("audio_token_id", "audio"),
)


class StreamSlot(SeparateSlot):
    """One modality's share of a block that the tokens of all modalities go through.

    Args:
        reader: how the model's inputs say which token is of which modality.
        root: the module of the model that is given them.
        holds_block: whether the block counts as this modality's, for the check that nothing is shared.
    """

    one_stream = True

    def __init__(self, *place: Any, reader: Reader, root: nn.Module, holds_block: bool) -> None:
        super().__init__(*place)
        self.reader, self.root, self.holds_block = reader, root, holds_block

    @property
    def held(self) -> Sequence[nn.Module]:
        return super().held if self.holds_block else ()

    def linear(self, target: str) -> nn.Linear:
        found, path = super().linear(target), self.place(target)[2]
        if not isinstance(found, Site) and (base := base_of(found, path)) is not None:
            raise ValueError(
                f"model: {path} is a {type(found).__name__} ({base.label}) in a single-stream model, expected a plain "
                "weight of 16 or 32 bit: load the model without quantisation, dispatching and offloading"
            )
        return found

    def install(self, targets: tuple[str, ...], common: CommonFactors, config: MoraConfig) -> None:
        for target in targets:
            found = self.linear(target)
            site: Any = found
            if not isinstance(found, StreamSite):
                site = StreamSite(found, Routes.of(self.root, self.reader)).train(found.training)
                share_hooks(site, found)
                self.put(target, site)
            self.projections[target] = projection = adapted_at(site, common, self, target, config)
            site.adapt(projection)

    def restore(self) -> None:
        for target, projection in self.projections.items():
            site: Any = projection.stand
            if site.release(self.modality):
                linear = site.original
                linear.weight, linear.bias = site.weight, site.bias
                share_hooks(linear, site)
                self.put(target, linear.train(site.training))
        self.projections = {}
        if not any(isinstance(module, StreamSite) for module in self.root.modules()):
            Routes.of(self.root, self.reader).leave(self.root)

    def site(self, target: str) -> Site:
        raise NotImplementedError("a single-stream model takes one adapter")

    def seat(self, target: str, site: Site, common: CommonFactors, config: MoraConfig) -> Adapted:
        raise NotImplementedError("a single-stream model takes one adapter")

    def watch(self, shared_input: SharedInput) -> None:
        """Nothing: tokens of a modality are dropped apart for each projection."""


@dataclass(frozen=True)
class StreamLayout(Separate):
    """As `Separate`, in a block that several modalities go through."""

    reader: Reader
    root: nn.Module
    holds_block: bool

    def slot(self, modality: str, layer: int, block: nn.Module, path: str) -> Slot:
        place = modality, layer, block, self.attention, path, self.below()
        return StreamSlot(*place, reader=self.reader, root=self.root, holds_block=self.holds_block)


@dataclass(frozen=True)
class StreamTower(Tower):
    """The tokens of one modality in the blocks of all.

    Attributes:
        root: dotted path of the module whose inputs say which token is what.
        path: dotted path of the list of blocks in the model.
        reader: how they say it.
        first: whether it is the first of the model's modalities.
    """

    root: str
    path: str
    reader: Reader
    first: bool
    kind: ClassVar[str] = "single stream"
    family: ClassVar[str] = "single stream"
    one_stream: ClassVar[bool] = True

    def slots(self, model: Any) -> list[Slot]:
        blocks = list(descend(model, self.path))
        paths = self.projections(blocks[0]) if blocks else {}
        layout = StreamLayout(paths, self.reader, descend(model, self.root), self.first)
        return layout.slots(self.modality, ((f"{self.path}.{index}", block) for index, block in enumerate(blocks)))

    @abstractmethod
    def attention_names(self, block: nn.Module) -> Mapping[str, str]:
        """Dotted paths of q, k, v and out below a block."""

    def projections(self, block: nn.Module) -> dict[str, str]:
        """Dotted paths below a block, by target: with its MLP where it has one of two linears."""
        try:
            return {**self.attention_names(block), **usual_mlp(block, "")}
        except ValueError:
            return dict(self.attention_names(block))

    def encode(self, model: Any, inputs: Tensor) -> Tensor:
        """The mean hidden row [B, d] of a whole stream of token ids [B, L], for `mora.verify`: no embedding."""
        return self.hidden(model, inputs).mean(dim=1)

    @abstractmethod
    def hidden(self, model: Any, ids: Tensor) -> Tensor:
        """What leaves the stream [B, L', d] for token ids [B, L]; where images come apart, some noise is one."""

    def width(self, model: Any) -> int:
        raise self.no_towers()

    def substitute(self, model: Any) -> Tensor:
        raise self.no_towers()

    def no_towers(self) -> ValueError:
        """The error for what embeds each modality by itself."""
        return ValueError(
            f"model: got a single-stream model, in which no tower embeds the {self.modality} alone: "
            "MissingModalityClassifier, savings and diagnoses need towers; expected the model's own head, with a blank "
            "input for what is missing"
        )


@dataclass(frozen=True)
class ViltStream(StreamTower):
    """A modality of `ViltModel`: the text's tokens, then the image's patches."""

    kind: ClassVar[str] = "ViLT, single stream"
    family: ClassVar[str] = "single stream of ViLT"

    def attention_names(self, block: nn.Module) -> Mapping[str, str]:
        return VIT if hasattr(descend(block, "attention"), "q_proj") else OLD_VIT

    def hidden(self, model: Any, ids: Tensor) -> Tensor:
        vilt, config = descend(model, self.root), descend(model, self.root).config
        weight = vilt.embeddings.cls_token
        with torch.random.fork_rng(devices=[]):  # patches are put in an order that is drawn
            torch.manual_seed(0)
            pixels = torch.randn(len(ids), config.num_channels, config.image_size, config.image_size).to(weight)
            state: Tensor = vilt(input_ids=ids, pixel_values=pixels).last_hidden_state
        return state

    def random(self, model: Any, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Random token ids [batch, L]."""
        config = descend(model, self.root).config
        length = min(8, config.max_position_embeddings)
        return torch.randint(1, config.vocab_size, (batch, length), generator=generator)


@dataclass(frozen=True)
class DecoderStream(StreamTower):
    """A modality of a decoder in which some tokens stand for what an image encoder saw."""

    reader: Marked
    kind: ClassVar[str] = "decoder, single stream"
    family: ClassVar[str] = "single stream of a decoder"

    def attention_names(self, block: nn.Module) -> Mapping[str, str]:
        return LLAMA

    def hidden(self, model: Any, ids: Tensor) -> Tensor:
        inner = descend(model, self.root)
        decoder = descend(model, self.path.rpartition(".")[0])
        with route(model, ids) if routes_in(decoder) else nullcontext():
            embedded = inner.get_input_embeddings()(ids)
            state: Tensor = decoder(inputs_embeds=embedded, use_cache=False).last_hidden_state
        return state

    def random(self, model: Any, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Random token ids [batch, L]: a part of them of each kind, at places of their own in every row."""
        marks = {modality: token for token, modality in self.reader.marks}
        size = descend(model, self.root).get_input_embeddings().num_embeddings
        ids = torch.randint(0, size, (batch, 4 + 3 * len(marks)), generator=generator)
        for token in {token for token, _ in self.reader.marks}:
            ids[ids == token] = next(other for other in range(size) if other not in dict(self.reader.marks))
        for number, token in enumerate(marks.values()):
            for row in range(batch):
                start = 1 + 3 * number + row % 2
                ids[row, start : start + 2] = token
        return ids


def parts(model: Any) -> tuple[str, str, Reader] | None:
    """(root, path of the blocks, reader) of a single-stream model; None for any other."""
    types = [kind.__name__ for kind in type(model).__mro__ if kind.__module__.startswith("transformers.")]
    if "ViltPreTrainedModel" in types:
        root = "vilt" if hasattr(model, "vilt") else ""
        return root, f"{root}.encoder.layer".lstrip("."), TextFirst()
    for root in ("model", ""):
        inner = descend(model, root)
        marks = marks_of(getattr(inner, "config", None))
        below = next((path for path in DECODERS if isinstance(descend(inner, path), nn.ModuleList)), "")
        if marks and below:
            return root, f"{root}.{below}".lstrip("."), Marked(marks)
    return None


def marks_of(config: Any) -> tuple[tuple[int, str], ...]:
    """The token ids that a configuration gives for images and others, each with its modality."""
    found = {getattr(config, name, None): modality for name, modality in MARKS}
    return tuple((token, modality) for token, modality in found.items() if isinstance(token, int))


def matches(model: Any) -> bool:
    """Whether `model` is of one stream."""
    return parts(model) is not None


def towers(model: Any) -> dict[str, Tower]:
    """The modalities of a model that `matches`, as towers that share their blocks."""
    found = parts(model)
    assert found is not None
    root, path, reader = found
    if isinstance(reader, Marked):
        return {m: DecoderStream(m, root, path, reader, not n) for n, m in enumerate(reader.modalities)}
    return {m: ViltStream(m, root, path, reader, not n) for n, m in enumerate(("image", "text"))}
