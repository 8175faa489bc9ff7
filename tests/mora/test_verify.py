"""verify proves that adapters are alive; summary says what they are."""

import pytest
import torch

import mora
from tests.mora.models import MODELS, open_clip_model

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
