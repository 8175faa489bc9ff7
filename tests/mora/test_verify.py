"""verify proves that adapters are alive; summary says what they are."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import mora
from mora.towers import towers_of
from tests.mora.models import MODELS, embed, images, open_clip_model, tokens

families = pytest.mark.parametrize("family", MODELS)


@families
@pytest.mark.parametrize("mode", [True, False])
def test_a_live_model_passes_and_is_untouched(family, mode):
    model = mora.patch(MODELS[family](), targets=("q", "k", "v", "out")).train(mode)
    state, hooks = torch.random.get_rng_state(), [len(module._forward_hooks) for module in model.modules()]
    assert mora.verify(model) is model
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training == mode and hooks == [len(module._forward_hooks) for module in model.modules()]


def test_a_projection_that_never_runs_is_named():
    model = mora.patch(open_clip_model())
    model.transformer.resblocks[3].attn = model.transformer.resblocks[3].attn.original
    with pytest.raises(RuntimeError, match=r"never ran: text\.3\.q, text\.3\.v$"):
        mora.verify(model)


def wrapped(model):
    """Every block's forward called through torch's own reentrant checkpoint."""
    for block in (slot.parent for tower in towers_of(model).values() for slot in tower.slots(model)):
        block.forward = lambda x, *given, _forward=block.forward, **named: checkpoint(
            lambda y: _forward(y, *given, **named), x, use_reentrant=True
        )
    return model


def enabled(model):
    return model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True}) or model


@families
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:None of the inputs")
@pytest.mark.parametrize("switch", [enabled, wrapped])
def test_reentrant_checkpointing_is_not_dead(family, switch):
    """Its adapters train as they do without, and `verify` says so; `.grad` is left as it was."""
    make = lambda: mora.patch(MODELS[family](), dropout=0.0).train()  # noqa: E731
    model, plain = make(), make()
    if switch is enabled and not hasattr(model, "gradient_checkpointing_enable"):
        pytest.skip("open_clip has a switch of its own, which is not reentrant")
    if family == "dual_encoder" and switch is enabled:
        pytest.skip("transformers has none for it")
    model.load_state_dict(plain.state_dict())
    switch(model)
    for modality in ("image", "text"):
        entered = towers_of(model)[modality].slots(model)[0].parent
        entered.register_forward_pre_hook(lambda _, given: (given[0].detach().requires_grad_(), *given[1:]))
    for one in (plain, mora.verify(model)):
        assert all(parameter.grad is None for parameter in one.parameters())
        sum(embedding.square().mean() for embedding in embed(one)).backward()
    before = {name: parameter.grad.clone() for name, parameter in mora.adapter_parameters(mora.verify(model))}
    for name, parameter in mora.adapter_parameters(plain):
        torch.testing.assert_close(before[name], parameter.grad, rtol=1e-5, atol=1e-8)
        assert torch.equal(dict(mora.adapter_parameters(model))[name].grad, before[name])


@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_reentrant_checkpointing_that_gives_no_gradient_is_named():
    """Nothing that enters a frozen tower's blocks asks for a gradient, so no block gives any."""
    model = wrapped(mora.patch(open_clip_model()).train())
    with pytest.raises(RuntimeError, match=r"without a gradient: common\.0.* pass use_reentrant=False"):
        mora.verify(model)
    next(mora.adapter_parameters(model))[1].register_post_accumulate_grad_hook(lambda parameter: parameter.zero_())
    with torch.no_grad():
        before = {name: tensor.clone() for name, tensor in mora.adapter_state_dict(model).items()}
    with pytest.raises(RuntimeError, match="without a gradient"):
        mora.verify(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in mora.adapter_state_dict(model).items())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:None of the inputs")
def test_a_classifier_under_reentrant_checkpointing_trains():
    """Rows past the frozen blocks ask for no gradient, so the first adapted block's input is made to."""
    found = []
    for switch in (enabled, lambda model: model):
        torch.manual_seed(0)
        model = switch(mora.patch(MODELS["hugging_face"](), dropout=0.0))
        torch.manual_seed(1)
        classifier = mora.MissingModalityClassifier(model, 3).train()
        classifier(images(), tokens()).square().sum().backward()
        found.append({name: parameter.grad for name, parameter in mora.adapter_parameters(model)})
    for name, gradient in found[1].items():
        torch.testing.assert_close(found[0][name], gradient, rtol=1e-4, atol=1e-7)


def test_a_frozen_or_cut_off_adapter_is_named():
    model = mora.patch(open_clip_model())
    model.mora.common[0].image.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"do not require grad: common\.0\.image$"):
        mora.verify(model)
    model = mora.patch(open_clip_model())
    forward = model.transformer.forward
    model.transformer.forward = lambda *args, **options: forward(*args, **options).detach().requires_grad_()
    with pytest.raises(RuntimeError, match=r"without a gradient: .*text\.2\.q\.specific_a"):
        mora.verify(model)


def test_a_gradient_that_is_not_finite_is_named():
    model = mora.patch(open_clip_model())
    with torch.no_grad():
        dict(mora.adapter_parameters(model))["image.3.q.common_magnitude"].fill_(float("inf"))
    with pytest.raises(RuntimeError, match=r"NaN or infinite: .*image\.3\.q"):
        mora.verify(model)


@families
def test_summary(family):
    model = mora.patch(MODELS[family](), rank={"image": 3, "text": 4}, common_rank=2)
    summary = mora.summary(model)
    adapters = sum(parameter.numel() for _, parameter in mora.adapter_parameters(model))
    assert summary.adapter_parameters == summary.trainable_parameters == adapters
    assert summary.total_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert len(summary.projections) == 8
    rows = {row.name: row for row in summary.projections}
    assert (rows["image.3.q"].width, rows["image.3.q"].common_rank, rows["image.3.q"].specific_rank) == (64, 2, 3)
    assert model.get_submodule(rows["text.2.v"].path).in_features == 48
    assert adapters == summary.common_parameters + sum(row.parameters for row in summary.projections)
    table = str(summary)
    assert "image.3.q" in table and "2+4" in table and f"{adapters:,}" in table and "torch: " in table


@families
def test_repr_shows_ranks_and_backend(family):
    model = mora.patch(MODELS[family](), rank=3, common_rank=2, backend="reference")
    text = repr(next(module for module in model.modules() if isinstance(module, mora.MoraLinear)))
    assert "common_rank=2, specific_rank=3, alpha=0.01, dropout=0.1, backend=reference" in text
