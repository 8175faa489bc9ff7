"""Nothing grows: not over steps, evaluations, patches or loads; in objects, tensors and resident memory."""

import gc
import os
import resource

import pytest
import torch

import mora
from tests.mora.models import embed, images, randomise, tokens
from tests.mora.oracle import SMALL

families = pytest.mark.parametrize("family", SMALL)
ROUNDS = 10 if os.environ.get("MORA_GROWTH") else 1  # 500 steps, 500 evaluations, 100 patches and 100 loads


def objects():
    """(objects, tensors) that are alive."""
    gc.collect()
    every = gc.get_objects()
    return len(every), sum(issubclass(type(one), torch.Tensor) for one in every)


def grows(action, times):
    """Run `action` and say how many objects and tensors, and kB of the largest resident size, came to stay."""
    for _ in range(5):
        action()
    before, peak = objects(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(times):
        action()
    after = objects()
    return after[0] - before[0], after[1] - before[1], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak


def assert_level(action, times):
    more_objects, more_tensors, more_memory = grows(action, times)
    # Python's own caches move by some objects; a leak of one a call would be `times`.
    assert more_objects < max(times / 2, 25), f"{more_objects} objects more after {times} calls"
    assert more_tensors <= 0, f"{more_tensors} tensors more after {times} calls"
    assert more_memory < 20_000, f"{more_memory} kB more after {times} calls"


@pytest.fixture
def classifier(family):
    return mora.MissingModalityClassifier(mora.patch(SMALL[family](), last_layers=1), 3)


@families
def test_training_steps(classifier):
    optimizer = torch.optim.AdamW([p for p in classifier.parameters() if p.requires_grad], lr=1e-3)
    classifier.train()

    def step():
        optimizer.zero_grad()
        classifier(images(2), tokens(2), torch.tensor([True, False])).square().mean().backward()
        optimizer.step()

    assert_level(step, 50 * ROUNDS)


@families
def test_evaluations(classifier):
    """Also where something changes between them, so that everything kept is kept anew."""
    classifier.eval()
    _, parameter = next(mora.adapter_parameters(classifier.model))

    @torch.no_grad()
    def evaluate():
        classifier(images(2), tokens(2), torch.tensor([True, False]))
        parameter.add_(1e-4)
        with mora.disabled(classifier.model):
            classifier(images(2), tokens(2))

    assert_level(evaluate, 50 * ROUNDS)


@families
def test_patch_and_unpatch(family):
    model = SMALL[family]()

    def round_trip():
        mora.patch(model, last_layers=1)
        with torch.no_grad():
            embed(model)
        mora.unpatch(model)

    assert_level(round_trip, 10 * ROUNDS)
    assert not model._load_state_dict_pre_hooks and not model._forward_hooks


@families
def test_loads(family, tmp_path):
    saved = mora.save_adapter(randomise(mora.patch(SMALL[family](), last_layers=1)), tmp_path)
    patched = mora.patch(SMALL[family](), last_layers=1)

    def load():
        mora.load_adapter(patched, saved)
        with torch.no_grad():
            embed(patched)
        mora.load_adapter(SMALL[family](), saved)

    assert_level(load, 10 * ROUNDS)
