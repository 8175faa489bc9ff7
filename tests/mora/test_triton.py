"""A patched model on the fused kernels, interpreted on the CPU: parity, launches, reuse."""

import pytest
import torch

import mora
from mora_kernels.launches import counted
from mora_kernels.testing import assert_parity
from tests.mora.models import SITES, embed, randomise

pytestmark = pytest.mark.usefixtures("poisoned")
families = pytest.mark.parametrize("family", SITES)
TABLE = {torch.float32: 2e-5}


def make(family, backend="triton", **options):
    """One adapted block a tower, 4 projections: the interpreter is slow."""
    model = mora.patch(SITES[family](), targets=("q", "v"), last_layers=1, backend=backend, **options)
    return randomise(model).train()


def energy(model):
    return sum(embedding.float().square().mean() for embedding in embed(model))


def gradients(model):
    model.zero_grad(set_to_none=True)
    energy(model).backward()
    return {name: parameter.grad.clone() for name, parameter in mora.adapter_parameters(model)}


@families
def test_gradients_equal_the_reference(family):
    actual, expected = gradients(make(family, dropout=0.0)), gradients(make(family, "reference", dropout=0.0))
    for name, gradient in expected.items():
        assert_parity(name, actual[name], gradient, TABLE)


@pytest.mark.parametrize(("family", "dropout"), [("open_clip", 0.0), ("open_clip", 0.1), ("hugging_face", 0.1)])
def test_launches_of_a_training_step(family, dropout):
    """The whole model builds in one launch each way; a projection costs at most 6, library products included."""
    model = make(family, dropout=dropout)
    gradients(model)  # uploads the table, once
    with torch.no_grad():
        dict(mora.adapter_parameters(model))["common.0.image"].mul_(1.0)  # as an optimizer step would
    with counted(library=False) as launches, mora.keeping(model):
        gradients(model)
    builds = [name for name in launches if "build" in name]
    assert sorted(builds) == ["build_group_backward_kernel", "build_group_kernel"]
    own = len(launches) - len(builds)
    # per projection: its share of dropout and of its backward, one gradient kernel; with three library products, <= 6
    assert own / 4 + 3 <= 6


def test_builds_are_reused_where_they_are_kept():
    model = make("open_clip", dropout=0.0)
    with counted(library=False) as launches, mora.keeping(model):
        for _ in range(2):  # gradient accumulation
            energy(model).backward()
        with torch.no_grad():
            embed(model.eval())
    assert launches.count("build_group_kernel") == 1
    with counted(library=False) as launches, torch.no_grad():
        embed(model)
    assert launches.count("build_group_kernel") == 4, "one a projection where nothing is kept"


def test_dropout_is_reproducible_and_differs_per_projection():
    model = make("open_clip", dropout=0.5)
    torch.manual_seed(0)
    first = gradients(model)
    torch.manual_seed(0)
    again = gradients(model)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["image.3.q.specific_b"], gradients(model)["image.3.q.specific_b"])


@families
def test_merge_equals_forward(family):
    model = make(family).eval()
    with torch.no_grad():
        before = [embedding.clone() for embedding in embed(model)]
        for name, merged, expected in zip(("image", "text"), embed(mora.merge(model)), before, strict=True):
            assert_parity(name, merged, expected, TABLE)


def test_a_backend_that_cannot_run_is_named():
    model = SITES["open_clip"]().double()
    with pytest.raises((RuntimeError, ValueError), match="triton.*float64"):
        mora.patch(model, backend="triton")
    assert not any(isinstance(module, mora.MoraLinear) for module in model.modules())


def test_summary_says_which_path_and_why():
    text = str(mora.summary(make("open_clip")))
    assert "triton: asked for by name" in text
