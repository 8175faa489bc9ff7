"""Adapters that cannot train are named at the first step, once: frozen later, or an optimizer made before."""

import gc
import warnings
import weakref

import pytest
import torch

import mora
from mora.adapters import first_step
from tests.mora.models import MODELS, embed, hugging_face_model, images, open_clip_model, tokens

families = pytest.mark.parametrize("family", MODELS)


def step(model, optimizer):
    sum(embedding.square().mean() for embedding in embed(model)).backward()
    optimizer.step()


def quietly(function, *args):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return function(*args)


@families
def test_an_optimizer_made_before_patch_is_noticed_once(family):
    model = MODELS[family]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    mora.patch(model)
    with pytest.warns(UserWarning, match=r"the AdamW that steps holds .* none of its adapters"):
        step(model, optimizer)
    quietly(step, model, optimizer)


@families
def test_an_optimizer_made_after_patch_is_silent(family):
    for choose in (lambda m: m.parameters(), lambda m: [p for p in m.parameters() if p.requires_grad]):
        model = mora.patch(MODELS[family]())
        quietly(step, model, torch.optim.SGD(choose(model), lr=1e-3))
    model = mora.patch(MODELS[family]())
    head = torch.nn.Linear(2, 2)
    head(torch.ones(2)).sum().backward()
    quietly(torch.optim.SGD(head.parameters(), lr=1e-3).step)  # of another model


def test_a_tower_locked_after_patch_is_noticed_by_optimizer_and_classifier():
    for use in ("optimizer", "classifier"):
        model = mora.patch(open_clip_model())
        classifier = mora.MissingModalityClassifier(model, 3).train()
        model.lock_image_tower()
        run = {
            "classifier": lambda classifier=classifier: classifier(images(), tokens()),
            "optimizer": lambda model=model: step(model, torch.optim.SGD(model.parameters(), lr=1e-3)),
        }
        with pytest.warns(UserWarning, match=r"will not train: image\.2\.q\.specific_a, .*lock_image_tower"):
            run[use]()
        quietly(classifier, images(), tokens())
        quietly(step, model, torch.optim.SGD(model.parameters(), lr=1e-3))


def test_peft_around_a_patched_model_is_noticed():
    from peft import LoraConfig, get_peft_model

    model = mora.patch(hugging_face_model())
    get_peft_model(model, LoraConfig(target_modules=["fc1"], r=2))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    with pytest.warns(UserWarning, match=r"will not train: common\.0\.image, .*get_peft_model"):
        step(model, optimizer)


@families
def test_nothing_is_looked_for_after_the_first_step_or_without_the_model(family):
    gc.collect()
    before = len(first_step._awaited)
    model = mora.patch(MODELS[family]())
    assert len(first_step._awaited) == before + 1
    quietly(step, model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3))
    assert len(first_step._awaited) == before
    for end in (mora.unpatch, mora.merge):
        end(mora.patch(MODELS[family]()))
        gc.collect()
        assert len(first_step._awaited) == before
    lost = mora.patch(MODELS[family]())
    there = weakref.ref(lost)
    del lost
    gc.collect()
    assert there() is None and len(first_step._awaited) == before


@families
def test_frozen_in_eval_is_nobodys_business(family):
    model = mora.patch(MODELS[family]())
    classifier = mora.MissingModalityClassifier(model, 3).eval()
    model.requires_grad_(False)
    quietly(classifier, images(), tokens())
