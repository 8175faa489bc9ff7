"""Any sequence of verbs: after every one the model computes what a slow model that keeps nothing computes.

MORA_SEQUENCES=2000 runs that many sequences, longer ones; the default is what a build can afford.
"""

import contextlib
import copy
import os
import pickle
import tempfile

import pytest
import torch
import torch_ema
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import mora
from tests.mora.models import embed, images, tokens
from tests.mora.oracle import PRISTINE, SMALL, Oracle, adapters_now, frozen_weight

SEQUENCES = int(os.environ.get("MORA_SEQUENCES", "0"))
# Relative to the largest element; a W_eff that is one step old is off by 0.01 and more.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2}
CONFIGS = [
    mora.MoraConfig(rank=2, alpha=0.1, dropout=0.0, last_layers=1),
    mora.MoraConfig(rank=3, common_rank=2, alpha=0.05, dropout=0.0, targets=("q", "k", "v", "out"), last_layers=2),
    mora.MoraConfig(rank=2, alpha=0.1, dropout=0.0, targets=("k", "out"), last_layers=1, variant="no-gram"),
    mora.MoraConfig(rank=2, alpha=0.1, dropout=0.0, targets=("v",), last_layers=2, variant="no-specific"),
    mora.MoraConfig(rank=2, alpha=0.1, dropout=0.0, targets=("q", "v"), last_layers=1, backend="reference"),
]
ORACLES = {family: Oracle(family) for family in SMALL}
IMAGES, TEXTS = images(3), tokens(3)
IMAGE_PRESENT, TEXT_PRESENT = torch.tensor([True, True, False]), torch.tensor([True, False, True])


def noise(tensor, seed, scale=0.3):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(tensor.shape, generator=generator)).to(tensor)


class World:
    """One classifier on one CLIP, and beside it what its weights have to be."""

    def __init__(self, family, folder):
        self.family, self.folder = family, folder
        self.classifier = mora.MissingModalityClassifier(copy.deepcopy(PRISTINE[family]), 3)
        self.base = {name: tensor.clone() for name, tensor in PRISTINE[family].state_dict().items()}
        self.saved = self.remembered = self.average = None
        self.beside = {}  # tensors of adapters that are not active, as they were left
        self.changes = 0  # of the base weights
        self.classifier.eval()

    @property
    def model(self):
        return self.classifier.model

    @property
    def patched(self):
        return mora.adapters.record.is_patched(self.model)

    @property
    def dtype(self):
        return self.classifier.head.weight.dtype

    def trained(self):
        return [
            *(parameter for _, parameter in mora.adapter_parameters(self.model)),
            *self.classifier.head.parameters(),
        ]

    def outputs(self):
        """As a user asks for them: embeddings of all rows, logits of rows that lack one modality."""
        pixels = IMAGES.to(next(self.model.parameters()).dtype)
        image, text = embed(self.model, pixels, TEXTS)
        logits = self.classifier(pixels, TEXTS, IMAGE_PRESENT, TEXT_PRESENT)
        return {"image": image, "text": text, "logits": logits}

    def check(self, said, adapted=True, tolerance=None):
        """Compare with the slow model, twice: what was kept by the first call is used in the second."""
        adapters = adapters_now(self.model) if adapted else None
        config = mora.adapters.record.adapters_of(self.model).config if self.patched else None
        oracle = ORACLES[self.family].load(self.base, adapters, config)
        wanted = oracle.outputs(IMAGES, TEXTS, self.classifier, IMAGE_PRESENT, TEXT_PRESENT)
        for call in ("first", "second"):
            for name, got in self.outputs().items():
                error = float((got.detach().double() - wanted[name]).abs().max() / wanted[name].abs().max())
                assert error <= (tolerance or TOLERANCE[self.dtype]), (
                    f"{said}: {name} at the {call} call is off {error:.1e}"
                )

    def gradients(self):
        self.classifier.zero_grad()
        for parameter in self.trained():
            parameter.grad = None
        self.outputs()["logits"].float().square().mean().backward()

    def became(self, classifier):
        """Another object with the same values: what referred to its parameters is gone."""
        self.classifier, self.average = classifier, None

    def check_base(self):
        state = self.model.state_dict()
        assert list(state) == list(self.base)
        assert all(torch.equal(tensor, self.base[name]) for name, tensor in state.items())


def patch(world, number):
    if not world.patched:
        mora.patch(world.model, CONFIGS[number % len(CONFIGS)])
        for index, (_, parameter) in enumerate(mora.adapter_parameters(world.model)):
            parameter.data += noise(parameter, index + number)
        world.average = None


def unpatch(world, number):
    mora.unpatch(world.model)
    world.average, world.beside = None, {}
    world.check_base()


def merge(world, number):
    """Merged weights are within rounding of (1); from then on they are the base."""
    adapters, config = adapters_now(world.model), mora.adapters.record.adapters_of(world.model).config
    expected = ORACLES[world.family].load(world.base, adapters, config).model.state_dict()
    mora.merge(world.model)
    for name, tensor in world.model.state_dict().items():
        error = (tensor.double() - expected[name]).abs().max() / expected[name].abs().max().clamp(min=1e-3)
        assert error <= TOLERANCE[world.dtype], f"merge: {name} is off {error:.1e}"
        world.base[name] = tensor.clone()
    world.average, world.changes, world.beside = None, world.changes + 1, {}


OPTIMIZERS = [
    lambda given: torch.optim.SGD(given, lr=0.5),
    lambda given: torch.optim.SGD(given, lr=0.5, momentum=0.9, foreach=True),
    lambda given: torch.optim.AdamW(given, lr=0.05),
    lambda given: torch.optim.AdamW(given, lr=0.05, fused=True),
    lambda given: torch.optim.AdamW(given, lr=0.05, foreach=True),
]


def optimizer(world, number):
    """A step in the mode the model is in; in half precision AdamW's eps is 0, so SGD.

    Of a bounded length: weights that run away are compared by their rounding, not by what was computed.
    """
    world.gradients()
    torch.nn.utils.clip_grad_norm_(world.trained(), 1.0)
    OPTIMIZERS[number % len(OPTIMIZERS) if world.dtype != torch.float16 else 0](world.trained()).step()


def by_data(world, number):
    """A step written by hand, in one of the ways that move no version counter."""
    for index, parameter in enumerate(world.trained()):
        change = noise(parameter, 10 * number + index)
        if number % 5 == 0:
            parameter.data.add_(change)
        elif number % 5 == 1:
            parameter.detach().numpy()[...] += change.numpy()
        elif number % 5 == 2:
            parameter.data = parameter.data + change
        elif number % 5 == 3:
            with torch.no_grad():
                parameter.set_(parameter.detach() + change)
        else:
            torch._foreach_add_([parameter.data], [change])


def in_place(world, number):
    with torch.no_grad():
        for index, parameter in enumerate(world.trained()):
            parameter.add_(noise(parameter, 10 * number + index))


def in_inference_mode(world, number):
    with torch.inference_mode():
        world.check("inference mode")


def frozen(world, number):
    """A frozen weight of an adapted projection, or one above it, changed through `.data`."""
    with torch.no_grad():
        if number % 2:
            name = next(name for name in world.base if name.endswith(("visual.proj", "visual_projection.weight")))
            world.model.get_parameter(name).data.mul_(1.5)
            world.base[name] = world.base[name] * 1.5
        else:
            where = "image", 1, "qkv"[number % 3]
            part = frozen_weight(ORACLES[world.family].load(world.base).model, *where)
            part.mul_(1.5)
            new = ORACLES[world.family].model.state_dict()
            for name, tensor in world.base.items():
                if not torch.equal(tensor.double(), new[name]):
                    world.base[name] = new[name].to(tensor.dtype, copy=True)  # the slow model goes on with its own
                    world.model.get_parameter(name).data.copy_(world.base[name])
    world.changes += 1


def make_average(world, number):
    """torch-ema's; in long runs diffusers' too, which takes seconds to import."""
    if SEQUENCES and number >= 4:
        training_utils = pytest.importorskip("diffusers.training_utils")
        return training_utils.EMAModel(world.trained(), decay=0.5, foreach=bool(number % 2))
    return torch_ema.ExponentialMovingAverage(world.trained(), decay=0.5)


def ema(world, number):
    """Update the average, swap it in or out, or evaluate inside it: all of it written through `.data`."""
    average, inside = world.average or (make_average(world, number), False)
    theirs = hasattr(average, "step")
    if inside:
        average.restore(world.trained())
    elif number % 4 == 0:
        average.step(world.trained()) if theirs else average.update()
    elif number % 4 == 1:
        average.store(world.trained())
        average.copy_to(world.trained())
    elif not theirs:
        with average.average_parameters():
            world.check("inside average_parameters")
    world.average = average, number % 4 == 1 and not inside


def remember(world, number):
    world.remembered = {name: tensor.clone() for name, tensor in world.model.state_dict().items()}, world.dtype


def recall(world, number):
    """load_state_dict of everything; `assign=True` puts other parameters in."""
    state, dtype = world.remembered or ({}, None)
    if list(state) != list(world.model.state_dict()) or dtype != world.dtype:
        return
    world.model.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=bool(number % 2))
    world.base = {name: state[name].clone() for name in world.base}
    world.beside = {}
    world.average = world.average if number % 2 == 0 else None
    world.changes += 1


def save(world, number):
    mora.save_adapter(world.model, world.folder)
    world.saved = adapters_now(world.model), mora.adapters.record.adapters_of(world.model).config, world.changes


def load(world, number):
    """What was saved comes back, or a ValueError because of another configuration or other base weights."""
    if world.saved is None:
        return
    tensors, config, changes = world.saved
    before = adapters_now(world.model)
    other = world.patched and mora.adapters.record.adapters_of(world.model).config != config
    try:
        mora.load_adapter(world.model, world.folder)
    except ValueError:
        assert other or changes != world.changes
        after = adapters_now(world.model)
        assert (after is None) == (before is None)
        assert all(torch.equal(tensor, after[name]) for name, tensor in (before or {}).items())
        return
    world.average = world.average if before else None
    assert not other
    now = adapters_now(world.model)
    assert all(torch.equal(tensor, tensors[name].to(tensor.dtype)) for name, tensor in now.items())


def disabled(world, number):
    with mora.disabled(world.model):
        world.check("disabled", adapted=False)


def train(world, number):
    world.classifier.train(not world.classifier.training)


def deepcopied(world, number):
    kept = world.classifier
    world.became(copy.deepcopy(kept))
    with torch.no_grad():
        for parameter in kept.parameters():
            parameter.zero_()  # what the copy shares with it would show


def pickled(world, number):
    world.became(pickle.loads(pickle.dumps(world.classifier)))


def to_dtype(world, number):
    dtype = [torch.float64, torch.float32, torch.float16][number % 3]
    world.classifier.to(dtype)
    world.beside = {}
    world.base = {name: t.to(dtype) if t.is_floating_point() else t for name, t in world.base.items()}
    world.changes += 1


def under_autocast(world, number):
    if world.dtype == torch.float32:
        with torch.autocast("cpu", torch.bfloat16):
            world.check("autocast", tolerance=0.1)


NAMES = ("default", "one", "two")


def leave(world):
    """Note what the active adapter holds; what refers to its parameters alone is gone."""
    world.beside[mora.active_adapter(world.model)] = adapters_now(world.model)
    world.average = None


def as_it_was_left(world, name):
    """Nobody has moved an adapter that was not active."""
    left = world.beside.pop(name, None)
    for key, tensor in mora.adapter_state_dict(world.model, name).items() if left else ():
        assert torch.equal(tensor, left[key]), f"{name}: {key} moved while another adapter was active"


def others_of(world):
    return [
        name for name in mora.adapters.record.host_of(world.model).every() if name != mora.active_adapter(world.model)
    ]


def add(world, number):
    """Another adapter of any configuration, away from its start, beside those there are."""
    free = [name for name in NAMES if name not in mora.adapters.record.host_of(world.model).every()]
    if free:
        mora.add_adapter(world.model, free[0], CONFIGS[number % len(CONFIGS)])
        for index, (_, parameter) in enumerate(mora.adapter_parameters(world.model, free[0])):
            parameter.data += noise(parameter, 50 + index + number)
        world.beside[free[0]] = {
            name: tensor.clone() for name, tensor in mora.adapter_state_dict(world.model, free[0]).items()
        }


def set_active(world, number):
    if others := others_of(world):
        name = others[number % len(others)]
        leave(world)
        mora.set_adapter(world.model, name)
        as_it_was_left(world, name)


def using(world, number):
    if others := others_of(world):
        with mora.using(world.model, others[number % len(others)]):
            world.check("using another")
            if number % 2:
                disabled(world, number)


def delete(world, number):
    """Any that is not active; where it is the first, the others are put in anew."""
    if others := others_of(world):
        name = others[number % len(others)]
        as_it_was_left(world, name)
        mora.delete_adapter(world.model, name)
        world.average = None


def combine(world, number):
    """A weighted sum becomes the base, or is taken back, bit for bit."""
    weights = {
        name: (0.5, -0.25, 1.0)[(number + n) % 3]
        for n, name in enumerate(mora.adapters.record.host_of(world.model).every())
    }
    expected = {name: tensor.double() for name, tensor in world.base.items() if tensor.is_floating_point()}
    for name, weight in weights.items():
        tensors, config = (
            mora.adapter_state_dict(world.model, name),
            mora.adapters.record.adapters_of(world.model, name).config,
        )
        folded = ORACLES[world.family].load(world.base, tensors, config).model.state_dict()
        for key in expected:
            expected[key] = expected[key] + weight * (folded[key] - world.base[key].double())
    before = {name: dict(mora.adapter_parameters(world.model, name)) for name in weights}
    mora.combine(world.model, weights, keep=True)
    world.average = None
    state = world.model.state_dict()
    for name, tensor in expected.items():
        error = (state[name].double() - tensor).abs().max() / tensor.abs().max().clamp(min=1e-3)
        assert error <= TOLERANCE[world.dtype], f"combine: {name} is off {error:.1e}"
    if number % 2:
        mora.unmerge(world.model)
        assert all(torch.equal(world.model.state_dict()[name], tensor) for name, tensor in world.base.items())
        for name, parameters in before.items():
            now = dict(mora.adapter_parameters(world.model, name))
            assert all(now[key] is parameter for key, parameter in parameters.items())
        return
    world.base = {name: tensor.clone() for name, tensor in state.items()}
    world.changes += 1
    world.beside = {}


def kept(world, number):
    """Within `mora.keeping`, and after it, when the library has it."""
    keeping = getattr(mora, "keeping", None)
    if keeping is not None:
        with keeping(world.model):
            world.check("keeping")
            if number % 2:
                getattr(mora, "forget", lambda model: None)(world.model)
                world.check("keeping, forgotten")


ON_PATCHED = [unpatch, merge, optimizer, optimizer, by_data, by_data, in_place, ema, ema, save, disabled]
ON_PATCHED += [add, add, set_active, set_active, using, delete, combine]
ANYWHERE = [patch, patch, in_inference_mode, frozen, remember, recall, load, train, deepcopied, pickled, to_dtype]
VERBS = [*ON_PATCHED, *ANYWHERE, under_autocast, kept]
CONTEXTS = {"no_grad": torch.no_grad, "grad": contextlib.nullcontext, "inference": torch.inference_mode}

step = st.tuples(
    st.sampled_from(VERBS).map(lambda verb: verb.__name__), st.integers(0, 7), st.sampled_from(sorted(CONTEXTS))
)


@settings(
    max_examples=SEQUENCES or 25,
    deadline=None,
    derandomize=not SEQUENCES,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    family=st.sampled_from(sorted(SMALL)),
    first=st.integers(0, 4),
    steps=st.lists(step, min_size=1, max_size=10 if SEQUENCES else 6),
)
@example(
    family="hugging_face",
    first=1,
    steps=[
        ("add", 0, "no_grad"), ("set_active", 0, "grad"), ("optimizer", 2, "no_grad"), ("add", 3, "no_grad"),
        ("using", 1, "no_grad"), ("delete", 0, "grad"), ("optimizer", 1, "no_grad"), ("combine", 1, "no_grad"),
        ("set_active", 1, "inference"), ("kept", 0, "grad"), ("combine", 0, "no_grad"),
    ],
)  # fmt: skip
@example(family="open_clip", first=0, steps=[("ema", 0, "no_grad"), ("by_data", 0, "no_grad"), ("ema", 2, "no_grad")])
def test_any_sequence_of_verbs(family, first, steps):
    with tempfile.TemporaryDirectory() as folder:
        world = World(family, folder)
        patch(world, first)
        for number, (name, argument, context) in enumerate(steps):
            verb = globals()[name]
            if verb in ON_PATCHED and not world.patched:
                continue
            verb(world, argument)
            with CONTEXTS[context]():
                world.check(f"after step {number}, {name}({argument})")
