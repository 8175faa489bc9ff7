"""The row that stands for missing images is computed again exactly when anything it depends on is not what it was."""

from contextlib import nullcontext

import pytest
import torch

import mora
from tests.savings.worlds import Samples, classifier

INDEX = torch.arange(6)


@pytest.fixture
def lone(monkeypatch):
    """How often one image alone was embedded in patches: the substitute's own pass."""
    calls, forward = [], torch.nn.Conv2d.forward

    def counting(self, x):
        calls.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", counting)
    return lambda: [calls.count(1), calls.clear()][0]


def call(model, samples, train):
    model.train(train)
    with torch.set_grad_enabled(train):
        return model(*samples.batch(INDEX)).detach()


def warm(lone, train, **options):
    samples, model = Samples(), classifier("open_clip", **options)
    call(model, samples, train)  # finds out where the tower can be cut
    lone()
    return samples, model


@pytest.mark.parametrize("train", [True, False])
def test_one_pass_for_two_calls_of_the_same_weights(lone, train):
    samples, model = warm(lone, train)
    first = call(model, samples, train)
    assert lone() == 0
    assert torch.equal(first, call(model, samples, train))
    with mora.keeping(model):
        assert torch.equal(first, call(model, samples, train))


def scale(model):
    model.model.visual.transformer.resblocks[0].mlp.c_fc.weight.data.mul_(3)


def sign_of_two(model):
    weight = model.model.visual.transformer.resblocks[0].mlp.c_fc.weight.detach().numpy()
    weight[0, 1:9:2] *= -1.0


def rows_in_another_order(model):
    weight = model.model.visual.transformer.resblocks[0].mlp.c_fc.weight
    weight.data = weight.data.flip(0)


def another_activation(model):
    model.model.visual.transformer.resblocks[0].mlp.gelu = torch.nn.ReLU()


def another_setting(model):
    model.model.visual.transformer.resblocks[0].ln_1.eps = 0.5


def another_substitute(model):
    model.missing_image.data.add_(1.0)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    "change", [scale, sign_of_two, rows_in_another_order, another_activation, another_setting, another_substitute]
)
def test_any_change_is_seen(lone, change, train):
    samples, model = warm(lone, train)
    before = call(model, samples, train)
    change(model)
    after = call(model, samples, train)
    model.save(mora.Savings.none())
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, call(model, samples, train), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keep", [True, False])
def test_an_adapter_that_moved_is_seen_in_eval_and_its_frozen_blocks_do_not_run_again(lone, keep):
    samples, model = warm(lone, False)
    moved, fresh = model, classifier("open_clip")
    with mora.keeping(model) if keep else nullcontext():
        before = call(model, samples, False)
        lone()
        for each in (moved, fresh):
            with torch.no_grad():
                dict(mora.adapter_parameters(each.model))["common.0.text"].mul_(2)
        after = call(model, samples, False)
        assert lone() == 0
    assert not torch.equal(before, after)
    assert torch.equal(after, call(fresh, samples, False))


def test_what_no_counter_saw_is_seen_in_eval(lone):
    samples, model = warm(lone, False)
    before = call(model, samples, False)
    dict(mora.adapter_parameters(model.model))["common.0.text"].data.mul_(2)
    after = call(model, samples, False)
    assert not torch.equal(before, after)
    lone()
    with mora.disabled(model.model):
        call(model, samples, False)
        assert lone() == 1
    assert torch.equal(after, call(model, samples, False))


def test_in_training_an_adapter_that_moved_costs_nothing(lone):
    samples, model = warm(lone, True)
    dict(mora.adapter_parameters(model.model))["common.0.text"].data.mul_(2)
    call(model, samples, True)
    assert lone() == 0


def test_hooks_of_the_user_see_every_call(lone):
    samples, model = warm(lone, False)
    model.model.visual.ln_pre.register_forward_hook(lambda *_: None)
    for _ in range(2):
        call(model, samples, False)
        assert lone() == 1
