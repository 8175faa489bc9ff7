"""What one model must do to count as adapted: the whole life of an adapter, compared with the model's own forward."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mora.adapters.patching import disabled, merge, patch, unpatch
from mora.adapters.record import adapter_parameters, adapters_of
from mora.adapters.verification import verify
from mora.census.classes import CLASSES
from mora.census.shrink import built
from mora.checkpoint.adapter import load_adapter, save_adapter
from mora.classifier import MissingModalityClassifier
from mora.fields.names import ATTENTION, TARGETS
from mora.savings.options import Savings
from mora.towers.block import whole
from mora.towers.find import towers_of
from mora.towers.tower import Tower, fitting

ROWS = 3
DRAWS = ("GroupViT",)  # something at random in training, so that two runs differ
SAME = 1e-9  # relative L2, in float64
STREAM = "one stream for all modalities: no savings; merged with a weight for each"
Embeddings = dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """What the census found of one configuration.

    Attributes:
        name: of the configuration or class.
        adapted: whether every tower is, and every check passed.
        towers: the kind of each, by modality.
        savings: what of the towers is cut, in words.
        mlp: the towers whose MLP is adapted as well.
        failed: the first check that did not pass, or the tower that has nothing to adapt, and why; "" when all is well.
        seconds: it took.
    """

    name: str
    adapted: bool
    towers: dict[str, str] = field(default_factory=dict)
    savings: str = ""
    mlp: str = ""
    failed: str = ""
    seconds: float = 0.0

    @property
    def library(self) -> str:
        """Whose model it is."""
        return "transformers" if self.name in CLASSES else "open_clip"


@dataclass
class Found:
    """What is seen of a model on the way, as `Row` has it."""

    towers: dict[str, str] = field(default_factory=dict)
    savings: str = ""
    mlp: str = ""


class CheckError(AssertionError):
    """A check that did not pass."""


def small(name: str) -> nn.Module:
    """A model of a name, with two blocks per tower on random weights, in float64 and eval mode."""
    model = CLASSES[name]().double() if name in CLASSES else built(name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # so that training can be compared
    return model


def looked_at(name: str, build: Callable[[str], nn.Module] = small) -> Row:
    """Build one configuration or class, shrunk, and check it; whatever goes wrong is the row's."""
    began, found = time.perf_counter(), Found()
    step = ["build"]
    try:
        model = build(name)
        step[0] = "recognise"
        for modality, tower in towers_of(model).items():
            found.towers[modality] = tower.kind
        why = without_attention(model)
        check(model, found, step, frozen=set(why))
        failed = "; ".join([*why.values(), *(["every check passes with it frozen"] if why else [])])
    except Exception as error:  # whatever a model may raise is a row of the table
        failed = f"{step[0]}: {' '.join(str(error).split()) or type(error).__name__}"
    return Row(name, not failed, **vars(found), failed=failed, seconds=time.perf_counter() - began)


def without_attention(model: nn.Module) -> dict[str, str]:
    """Why towers of a model cannot be adapted, by modality, where others can."""
    why = {}
    towers = towers_of(model)
    for modality, tower in towers.items():
        try:
            tower.slots(model)
        except ValueError as error:
            why[modality] = str(error)
    return why if len(why) < len(towers) else {}


def check(model: nn.Module, found: Found, step: list[str], frozen: set[str]) -> None:
    """Raise what is wrong with a model; `step` says at which check, `found` what was seen on the way.

    The towers named in `frozen` stay as they are.
    """
    towers = towers_of(model)
    generator = torch.Generator().manual_seed(1)
    inputs = {m: fitting(t.random(model, ROWS, generator), next(model.parameters())) for m, t in towers.items()}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        plain = embedded(model, towers, inputs)
    step[0] = "patch"
    settings = settings_of(model, towers, frozen)
    found.mlp = " and ".join(modality for modality, targets in settings["targets"].items() if "fc1" in targets)
    depth = min(len(tower.slots(model)) for modality, tower in towers.items() if modality not in frozen)
    patch(model, init="identity", **settings | {"last_layers": depth})
    step[0] = "verify"
    verify(model)
    step[0] = "identity"
    with torch.no_grad():
        same(embedded(model, towers, inputs), plain)
    step[0] = "unpatch"
    untouched(unpatch(model), weights)
    step[0] = "gradients"
    patch(model, **settings)
    randomise(model)
    adapted = embedded(model, towers, inputs)
    torch.stack([embedding.square().sum() for embedding in adapted.values()]).sum().backward()
    if dead := [name for name, p in adapter_parameters(model) if p.grad is None or not bool(p.grad.any())]:
        raise CheckError(f"no gradient of {', '.join(dead)}")
    adapted = {modality: embedding.detach() for modality, embedding in adapted.items()}
    if moved := [m for m in adapted if (difference(adapted[m], plain[m]) < SAME) != (m in frozen)]:
        raise CheckError(f"adapters change nothing, or what is frozen, in {', '.join(moved)}")
    step[0] = "disabled"
    with disabled(model), torch.no_grad():
        same(embedded(model, towers, inputs), plain)
    step[0] = "classifier"
    stream = any(slot.one_stream for slot in adapters_of(model).slots())
    found.savings = STREAM if stream else classified(model, towers, inputs)
    step[0] = "save and load"
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, folder)
        untouched(unpatch(model), weights)
        load_adapter(model, folder)
    with torch.no_grad():
        same(embedded(model, towers, inputs), adapted)
    step[0] = "merge"
    merge(model, per_modality=stream)
    with torch.no_grad():
        same(embedded(model, towers, inputs), adapted)
    if not stream and list(model.state_dict()) != list(weights):
        raise CheckError("the merged model has other keys")


def settings_of(model: nn.Module, towers: dict[str, Tower], frozen: set[str]) -> dict[str, Any]:
    """The last block of each tower, so that the first is frozen; its MLP where it has one of two linears."""
    targets: dict[str, tuple[str, ...]] = {}
    for modality, tower in towers.items():
        if modality not in frozen:
            targets[modality] = TARGETS
            try:
                whole(tower.slots(model)[-1], TARGETS)
            except ValueError:
                targets[modality] = ATTENTION
    adapt = {modality: "frozen" if modality in frozen else "mora" for modality in towers} if frozen else None
    return {"targets": targets, "last_layers": 1, "dropout": 0.0, "adapt": adapt}


def embedded(model: nn.Module, towers: dict[str, Tower], inputs: Embeddings) -> Embeddings:
    """The embeddings of every tower, by the model's own forward."""
    return {modality: tower.encode(model, inputs[modality]) for modality, tower in towers.items()}


def classified(model: nn.Module, towers: dict[str, Tower], inputs: Embeddings) -> str:
    """Raise `CheckError` where the classifier gives other logits with savings; what is saved, in words."""
    missing: dict[str, Tensor] = {}
    for modality, tower in towers.items():
        try:
            tower.substitute(model)
        except ValueError:
            missing[modality] = inputs[modality][0]
    saving, nothing = (
        MissingModalityClassifier(model, 3, missing=missing, savings=savings) for savings in (Savings(), Savings.none())
    )
    nothing.head = saving.head
    saved = saving.saved()
    masks = (torch.tensor([True, False, True]), torch.tensor([True, True, False]))
    present = dict(zip(towers, masks, strict=True)) if len(towers) == 2 else None
    random = any(part in type(model).__name__ for part in DRAWS)
    for training in (False,) if random else (True, False):
        logits = [one.train(training)(inputs=inputs, present=present) for one in (saving, nothing)]
        logits = [one.detach() for one in logits]
        if not difference(*logits) <= SAME:
            mode = "training" if training else "eval"
            raise CheckError(f"in {mode} the logits differ by {difference(*logits):.1e} with savings")
    return "; ".join(saved)


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Move every adapter away from its start."""
    generator = torch.Generator().manual_seed(2)
    for _, parameter in adapter_parameters(model):
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))


def difference(found: Tensor, expected: Tensor) -> float:
    """Relative L2."""
    return float(torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected))


def same(found: Embeddings, expected: Embeddings) -> None:
    """Raise `CheckError` unless embeddings are the same up to rounding, and those of the rows are not."""
    for modality, embedding in expected.items():
        if not difference(found[modality], embedding) <= SAME:
            raise CheckError(f"{modality} differs by {difference(found[modality], embedding):.1e}")
        if difference(embedding[1:], embedding[:-1]) < SAME:
            raise CheckError(f"{modality} embeds every input alike")


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, NaN included: some of open_clip's parameters are never initialised."""
    return torch.equal(one.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8))


def untouched(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Raise `CheckError` unless a model has the weights it had, bit for bit."""
    now = model.state_dict()
    if list(now) != list(weights):
        raise CheckError("the model has other keys")
    if changed := [name for name, tensor in now.items() if not same_bits(tensor, weights[name])]:
        raise CheckError(f"changed: {', '.join(changed)}")
