"""Where the linears of one block are adapted, and how they are put in and taken out again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mora.bases import Base, base_of, outline_of, weight_of
from mora.config import MoraConfig
from mora.fields.names import ATTENTION
from mora.methods.factors import CommonFactors
from mora.methods.shared_input import SharedInput
from mora.projection.adapted import Adapted
from mora.projection.site import Site, site_of
from mora.system.hooks import share_hooks
from mora.towers.adapted import adapted_at
from mora.towers.admission import check_linear, class_name, inside, located
from mora.towers.packed import PackedSlice

INWARD = ("q", "k", "v", "fc1")  # these read what the others write, the width of the block


class Slot(ABC):
    """The attention module of one block of one tower; `projections` holds what is adapted there, by target.

    Where a wrapper (`checkpoint_wrapper`, `torch.compile`) stands around block or attention and forwards what is read,
    `parent`, `name` and `path` are those inside it: what is set on a wrapper never runs.

    Args:
        modality: of the tower.
        layer: index of the block in its tower.
        block: what stands in the tower's list of blocks.
        attention: dotted path of the attention below the block; "" is the block itself.
        path: dotted path of the block in the model.

    Attributes:
        mlp: paths below the block of "fc1" and "fc2", where somebody gave them.
    """

    mlp: Mapping[str, str] = {}
    one_stream = False  # whether the tokens of other modalities go through the same block
    key: str  # what tells the attention itself from a wrapper around it

    def __init__(self, modality: str, layer: int, block: nn.Module, attention: str, path: str) -> None:
        self.modality, self.layer, self.block, self.block_path = modality, layer, block, path
        here, found = located(block, attention)
        deeper = inside(found, self.key) if self.opens(found) else ""
        here = ".".join(part for part in (here, deeper) if part)
        above, _, self.name = here.rpartition(".")
        self.parent, self.path = block.get_submodule(above), f"{path}.{here}".rstrip(".")
        self.projections: dict[str, Adapted] = {}
        self.shared_input: SharedInput | None = None

    def opens(self, attention: nn.Module) -> bool:
        """Whether what is inside of `attention`, a wrapper, may be replaced there."""
        return class_name(attention).startswith("torch.") and not isinstance(attention, nn.MultiheadAttention)

    @property
    def attention(self) -> Any:
        """The attention module that stands there now: the block, where that holds q, k and v itself."""
        return getattr(self.parent, self.name) if self.name else self.parent

    @property
    def held(self) -> Sequence[nn.Module]:
        """The block, and what of it no other block may have."""
        return self.block, self.attention

    @property
    def paths(self) -> list[str]:
        """Dotted paths in the model of the modules that call what is adapted."""
        return [self.path]

    def holds(self, target: str) -> bool:
        """Whether a target's linear is to be looked for here."""
        return target in ATTENTION

    @abstractmethod
    def linear(self, target: str) -> nn.Linear | PackedSlice:
        """The frozen projection of a target; raises ValueError when this block has none that can be adapted."""

    @abstractmethod
    def replaced(self, targets: tuple[str, ...]) -> dict[str, nn.Module]:
        """The modules that `install` would replace, and whose weights `merge` would write, by path in the model."""

    @abstractmethod
    def install(self, targets: tuple[str, ...], common: CommonFactors, config: MoraConfig) -> None:
        """Put an adapted projection in the place of every target."""

    @abstractmethod
    def site(self, target: str) -> Site:
        """The place of a target at which adapters take turns: what stands there, or a new one that is put there."""

    def seat(self, target: str, site: Site, common: CommonFactors, config: MoraConfig) -> Adapted:
        """Adapt a target at a site, at which others compute as well, and return the projection."""
        self.projections[target] = projection = adapted_at(site, common, self, target, config)
        share_hooks(projection, site)
        return projection

    def let_go(self) -> None:
        """Hold no adapter any more, only the sites; what this slot put into the model stays until `restore`."""
        self.projections = {target: one.stand for target, one in self.projections.items()}  # type: ignore[misc]
        if self.shared_input is not None:
            self.shared_input.members = ()

    @abstractmethod
    def restore(self) -> None:
        """Put the original modules back, holding the parameters as they are now."""

    def swap(self, target: str, linear: nn.Module) -> None:
        """Put another `nn.Linear` in the place of a target that is not adapted, for good."""
        raise ValueError(f"model: {self.path} holds {target!r} in a packed weight, expected a linear of its own")

    def watch(self, shared_input: SharedInput) -> None:
        """Let projections of one input be computed together while the attention runs."""
        self.shared_input = shared_input

    @abstractmethod
    def linear_names(self, targets: tuple[str, ...]) -> list[str]:
        """Dotted paths in the model of the targets' `nn.Linear`s, after `split`."""

    @abstractmethod
    def split(self, targets: tuple[str, ...]) -> None:
        """See to it that every target is an `nn.Linear` of its own, for libraries that adapt whole modules."""

    @abstractmethod
    def unsplit(self, targets: tuple[str, ...]) -> None:
        """The original module back, with the weights that the split `nn.Linear`s hold now."""

    def weight(self, target: str) -> Tensor:
        """The frozen weight [out, in] of a target, adapted or not; raises ValueError when this block has none."""
        found = self.projections.get(target) or self.linear(target)
        return found.weight if isinstance(found, (Site, PackedSlice)) else weight_of(found)

    def base(self, target: str) -> Base | None:
        """Where that weight is made from; None where it is plain."""
        found = self.projections.get(target) or self.linear(target)
        return found.base if isinstance(found, Site) else base_of(found)

    def outline(self, target: str) -> Tensor:
        """A tensor of the shape, dtype and device of that weight, without its values where they are elsewhere."""
        found = self.projections.get(target) or self.linear(target)
        if isinstance(found, PackedSlice):
            return found.weight
        return found.outline if isinstance(found, Site) else outline_of(found)

    def width(self, targets: tuple[str, ...]) -> int:
        """d of the block, the width that q reads; where there is no q, that of the first target.

        Raises ValueError when this block has none of the targets.
        """
        first = "q" if self.holds("q") else targets[0]
        return self.outline(first).shape[first in INWARD]

    def further(self, targets: tuple[str, ...]) -> list[int]:
        """The other widths at which a target begins or ends: the hidden width of an MLP, a pooled one."""
        every = {width for target in targets for width in self.outline(target).shape}
        return sorted(every - {self.width(targets)})

    def label(self, target: str) -> str:
        """The name of a projection, "image.11.v", the same whatever the tower is made of."""
        return f"{self.modality}.{self.layer}.{target}"

    def named_projections(self) -> Iterator[tuple[str, Adapted]]:
        """(name, module) of what is adapted here."""
        for target, projection in self.projections.items():
            yield self.label(target), projection


class SeparateSlot(Slot):
    """Attention, or an MLP, with one `nn.Linear` per projection.

    Args:
        names: dotted path of each target's `nn.Linear` below the attention.
    """

    def __init__(
        self, modality: str, layer: int, block: nn.Module, attention: str, path: str, names: Mapping[str, str]
    ) -> None:
        self.names = names
        self.key = next(iter(names.values())).partition(".")[0]
        super().__init__(modality, layer, block, attention, path)
        self.originals: dict[str, nn.Linear] = {}

    @property
    def paths(self) -> list[str]:
        return list(dict.fromkeys([self.path, *(self.place(t)[2].rpartition(".")[0] for t in self.projections)]))

    def holds(self, target: str) -> bool:
        return target in self.names

    def opens(self, attention: nn.Module) -> bool:
        return True  # the attention itself stays, so whatever is around it may stand there

    def place(self, target: str) -> tuple[Any, str, str]:
        """(the module that holds a target's linear, its name there, its path in the model)."""
        if target not in self.names:
            raise ValueError(f"targets: {self.path} has no {target!r}, expected some of {', '.join(self.names)}")
        above, _, name = self.names[target].rpartition(".")
        here, holder = located(self.attention, above) if above else ("", self.attention)
        return holder, name, ".".join(part for part in (self.path, here, name) if part)

    def put(self, target: str, module: nn.Module) -> None:
        """Let `module` be what stands for a target."""
        holder, name, _ = self.place(target)
        setattr(holder, name, module)

    def linear(self, target: str) -> nn.Linear:
        holder, name, path = self.place(target)
        return check_linear(getattr(holder, name, None), path, target)

    def replaced(self, targets: tuple[str, ...]) -> dict[str, nn.Module]:
        return {self.place(target)[2]: self.linear(target) for target in targets}

    def install(self, targets: tuple[str, ...], common: CommonFactors, config: MoraConfig) -> None:
        for target in targets:
            linear = self.linear(target)
            projection = adapted_at(linear, common, self, target, config).train(linear.training)
            share_hooks(projection, linear)
            self.originals[target], self.projections[target] = linear, projection
            self.put(target, projection)

    def site(self, target: str) -> Site:
        linear = self.linear(target)
        if isinstance(linear, Site):
            return linear
        site = site_of(linear).train(linear.training)
        share_hooks(site, linear)
        self.originals[target] = linear
        self.put(target, site)
        return site

    def restore(self) -> None:
        if self.shared_input is not None:
            self.shared_input.leave(self.attention)
            self.shared_input = None
        for target, linear in self.originals.items():
            self.put(target, take_back(self.projections[target], linear))
        self.originals, self.projections = {}, {}

    def swap(self, target: str, linear: nn.Module) -> None:
        share_hooks(linear, self.linear(target))
        self.put(target, linear)

    def watch(self, shared_input: SharedInput) -> None:
        super().watch(shared_input)
        shared_input.watch(self.attention)

    def linear_names(self, targets: tuple[str, ...]) -> list[str]:
        return [self.place(target)[2] for target in targets]

    def split(self, targets: tuple[str, ...]) -> None:
        for target in targets:
            self.linear(target)

    def unsplit(self, targets: tuple[str, ...]) -> None:
        """Nothing to do: the projections were never packed."""


def take_back(projection: Any, linear: Any) -> Any:
    """Return `linear` holding the parameters and the mode of what stood for it."""
    if isinstance(projection, Site):
        projection.give(linear)
    else:
        linear.weight, linear.bias = projection.weight, projection.bias
    share_hooks(linear, projection)
    return linear.train(projection.training)
