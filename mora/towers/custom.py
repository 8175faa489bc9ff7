"""Towers of a model of one's own: where the blocks are, and what else is known of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from operator import attrgetter
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mora.methods.factors import CommonFactors
from mora.system.messages import listed, shown
from mora.towers import tower as base
from mora.towers.admission import located
from mora.towers.cutting import evaluating
from mora.towers.layouts import Layout
from mora.towers.slots import Slot
from mora.towers.usual import given_layout, usual_layout

TAKEN = {*dir(CommonFactors), "rank", "modalities", "training"}  # the common factors stand under their modalities
# Methods of a model that embed one modality: open_clip's, transformers', and what a hand-written one may be called.
USUAL = ("encode_{}", "get_{}_features", "embed_{}")


@dataclass(frozen=True, eq=False)
class Tower:
    """One tower of a model of your own, for `mora.patch(model, towers={"audio": mora.Tower(...), ...})`.

    Attributes:
        blocks: dotted path of the list of blocks ("audio.layers"), a glob ("audio.layer*"), that list itself, or a
            sequence of paths or modules, from bottom to top.
        projections: where q, k, v, out, fc1 and fc2 are below each block, {"q": "attn.to_q", ...}; or the path of an
            attention with a packed `in_proj_weight`. An MLP that is not given, and everything where this is None, is
            found by the names that are usual.
        encode: how inputs [B, ...] become embeddings [B, e]: the dotted path of a method or a submodule
            ("encode_audio", "audio"), or a function of (model, inputs). None: `encode_audio`, `get_audio_features` or
            `embed_audio`, if the model has it. Without it the model is adapted, and nothing here can run the tower.
        missing: what stands for a missing input, one input without the batch; or a function of (model).
        width: e; None: found by embedding one input.
        example: one input without the batch, floats that noise may replace or whole numbers (tokens); or a function of
            (batch size) that returns inputs. What `mora.verify` runs. None: `missing`.
    """

    blocks: Any
    projections: Mapping[str, str] | str | None = None
    encode: str | Callable[..., Tensor] | None = None
    missing: Tensor | Callable[[Any], Tensor] | None = None
    width: int | None = None
    example: Tensor | Callable[[int], Tensor] | None = None


@dataclass(frozen=True)
class CustomTower(base.Tower):
    """A tower that somebody described; it runs whole.

    Attributes:
        paths: of its blocks in the model.
        layout: how a block holds its projections.
        mlp: paths below a block of its MLP's linears, where they are not found by the usual names.
        run, missing, size, example: as `Tower` has them, `run` resolved to a path where it is one.
    """

    paths: tuple[str, ...]
    layout: Layout
    mlp: Mapping[str, str] = field(default_factory=dict)
    run: str | Callable[..., Tensor] | None = None
    missing: Any = field(default=None, compare=False)
    size: int | None = None
    example: Any = field(default=None, compare=False)
    kind: ClassVar[str] = "user-defined"
    family: ClassVar[str] = "user-defined"

    def slots(self, model: Any) -> list[Slot]:
        found: list[Slot] = []
        for layer, path in enumerate(self.paths):
            block = model.get_submodule(path)
            _, attention = located(block, self.layout.attention)
            if attention is None or not self.layout.fits(attention):
                raise ValueError(
                    f"towers[{self.modality!r}]: {path} has no {self.layout.attention or 'q, k, v'} as the first block "
                    f"has, expected blocks alike: {listed(name for name, _ in block.named_children())}"
                )
            slot = self.layout.slot(self.modality, layer, block, path)
            slot.mlp = self.mlp
            found.append(slot)
        return found

    def encode(self, model: Any, inputs: Tensor) -> Tensor:
        if self.run is None:
            raise ValueError(self.untried(model))
        found = attrgetter(self.run)(model)(inputs) if isinstance(self.run, str) else self.run(model, inputs)
        found = getattr(found, "pooler_output", found)
        if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != len(inputs):
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise ValueError(f"encode: got {got} of the {self.modality} tower, expected embeddings [{len(inputs)}, e]")
        return found

    def width(self, model: Any) -> int:
        if self.size is not None:
            return self.size
        if why := self.untried(model):
            raise ValueError(why)
        weight = next(model.parameters())
        with torch.no_grad(), evaluating(model), torch.random.fork_rng(devices=[]):
            return self.encode(model, base.fitting(self.random(model, 1), weight)).shape[1]

    def substitute(self, model: Any) -> Tensor:
        missing = self.missing(model) if callable(self.missing) else self.missing
        if not isinstance(missing, Tensor):
            raise ValueError(
                f"missing: got {shown(missing)} for the {self.modality} tower, expected one input, a tensor without "
                f"the batch: mora.Tower(..., missing=...), or missing={{{self.modality!r}: ...}} of the classifier"
            )
        return missing

    def random(self, model: Any, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Noise of the example's shape where it is of floats; the example again and again where it is of tokens."""
        if callable(self.example):
            return self.example(batch)
        if why := self.untried(model, runs=True):
            raise ValueError(why)
        one = self.substitute(model) if self.example is None else self.example
        if one.is_floating_point():
            return torch.randn(batch, *one.shape, generator=generator).to(one)
        return one.expand(batch, *one.shape).clone()

    def untried(self, model: Any, runs: bool = False) -> str:
        if self.run is None and not runs:
            usual = ", ".join(name.format(self.modality) for name in USUAL)
            return (
                f"encode: got None for the {self.modality} tower, and the model has no {usual}: "
                "mora.Tower(..., encode='METHOD' or a function of (model, inputs))"
            )
        if self.example is None and self.missing is None:
            return (
                f"example: got None for the {self.modality} tower, expected one input without the batch, or a function "
                "of the batch size: mora.Tower(..., example=...)"
            )
        return ""


def described(model: nn.Module, towers: object) -> dict[str, base.Tower]:
    """The towers that `mora.patch(model, towers=...)` names, by modality.

    Args:
        model: the model itself.
        towers: by modality, a `Tower`, or its `blocks` alone; or one of `mora.towers.towers_of(model)`.

    Raises ValueError that names the entry, and says what is there instead.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a module")
    if isinstance(model, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        raise ValueError(
            f"model: got a {type(model).__name__}, which would take the adapters for one of its own, expected a module "
            "that holds it"
        )
    if not isinstance(towers, Mapping) or not towers:
        raise ValueError(f"towers: got {shown(towers)}, expected a mapping {{'image': 'visual.blocks', ...}}")
    found: dict[str, base.Tower] = {}
    for modality, given in towers.items():
        if not isinstance(modality, str) or not modality.isidentifier() or modality in TAKEN:
            raise ValueError(f"towers: got the name {shown(modality)}, expected a plain word such as 'audio'")
        if isinstance(given, base.Tower):
            found[modality] = given
            continue
        given = given if isinstance(given, Tower) else Tower(given)
        where = f"towers[{modality!r}]"
        paths = block_paths(model, given.blocks, where)
        block, first = model.get_submodule(paths[0]), f"{where}: {paths[0]}"
        projections = dict(given.projections) if isinstance(given.projections, Mapping) else given.projections
        layout, mlp = (
            (usual_layout(block, first), {}) if projections is None else given_layout(block, projections, first)
        )
        run = encoder(model, modality, given.encode, where)
        found[modality] = CustomTower(modality, paths, layout, mlp, run, given.missing, given.width, given.example)
    return found


def block_paths(model: nn.Module, blocks: object, where: str) -> tuple[str, ...]:
    """The paths of blocks in the model, from bottom to top; ValueError when there are none."""
    if isinstance(blocks, str) and any(letter in blocks for letter in "*?["):
        parts, names = blocks.split("."), [name.split(".") for name, _ in model.named_modules()]
        fits = [name for name in names if len(name) == len(parts) and all(map(fnmatchcase, name, parts))]
        if not fits:
            raise ValueError(f"{where}: no module matches {blocks!r}, expected a path such as {a_list(model)}")
        return tuple(".".join(name) for name in fits)
    if isinstance(blocks, (str, nn.Module)):
        path = blocks if isinstance(blocks, str) else path_of(model, blocks, where)
        module = reached(model, path, where)
        if not isinstance(module, (nn.ModuleList, nn.Sequential, nn.ModuleDict)) or not len(module):
            raise ValueError(
                f"{where}: {path} is a {type(module).__name__} with {children(module)}, expected a list of blocks"
            )
        return tuple(f"{path}.{name}" for name, _ in module.named_children())
    if isinstance(blocks, Sequence) and blocks:
        paths = [one if isinstance(one, str) else path_of(model, one, where) for one in blocks]
        for path in paths:
            reached(model, path, where)
        return tuple(paths)
    raise ValueError(f"{where}: got {shown(blocks)}, expected a dotted path, a glob, a list of blocks or a mora.Tower")


def reached(model: nn.Module, path: str, where: str) -> nn.Module:
    """The module at a path; ValueError that lists what is there where it ends."""
    module, done = model, ""
    for name in path.split("."):
        child = getattr(module, name, None) if name else None
        if not isinstance(child, nn.Module):
            raise ValueError(
                f"{where}: got {path!r}, which leads nowhere: {done or 'the model'} has {children(module)}"
            )
        module, done = child, f"{done}.{name}".lstrip(".")
    return module


def path_of(model: nn.Module, module: object, where: str) -> str:
    """Where a module is in the model; ValueError when it is not there."""
    path = next((name for name, one in model.named_modules() if name and one is module), None)
    if path is None:
        raise ValueError(f"{where}: got a {type(module).__name__}, which is no module of the model")
    return path


def children(module: nn.Module) -> str:
    """What a module holds, in words."""
    return listed(name for name, _ in module.named_children()) or "no child modules"


def a_list(model: nn.Module) -> str:
    """The path of a list of blocks in a model, as an example; of its first child when there is none."""
    lists = [name for name, module in model.named_modules() if isinstance(module, (nn.ModuleList, nn.Sequential))]
    return repr(next(iter(lists), children(model)))


def encoder(model: nn.Module, modality: str, given: object, where: str) -> str | Callable[..., Tensor] | None:
    """How the model embeds a modality: a path in it where it is one, a function, or None where nobody said."""
    if given is None:
        usual = (name.format(modality) for name in USUAL)
        return next((name for name in usual if callable(getattr(model, name, None))), None)
    owner = given if isinstance(given, nn.Module) else getattr(given, "__self__", None)
    if isinstance(owner, nn.Module):  # of the model: a copy of it has its own
        path = "" if owner is model else path_of(model, owner, f"{where}: encode")
        return ".".join(part for part in (path, "" if given is owner else given.__name__) if part)  # type: ignore[attr-defined]
    if isinstance(given, str):
        try:
            found = attrgetter(given)(model)
        except AttributeError:
            found = None
        if not callable(found):
            raise ValueError(f"{where}: encode is {given!r}, which is no method of the model or of a module in it")
        return given
    if not callable(given):
        raise ValueError(f"{where}: encode is {shown(given)}, expected a path or a function of (model, inputs)")
    return given
