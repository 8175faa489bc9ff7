"""Every figure of a diagnosis against dense algebra written for the test."""

import copy

import numpy as np
import pytest
import torch

import mora
from tests.diagnosis import dense
from tests.mora.models import MODELS, open_clip_model, randomise

FIELDS = [
    "start_move", "learned_move", "total_move", "common_new", "specific_new", "start_new", "common_moved",
    "common_strength", "common_negative", "specific_negative", "effective_rank", "learned_rank",
]  # fmt: skip
WORLDS = {
    "official": {"alpha": 0.05},
    "shipped": {"alpha": 10.0},
    "identity": {"init": "identity", "alpha": 0.05},
    "no-gram": {"variant": "no-gram", "alpha": 0.3},
    "fixed-gram": {"variant": "fixed-gram", "alpha": 0.05},
    "no-specific": {"variant": "no-specific", "alpha": 0.05},
    "no-gram identity": {"variant": "no-gram", "init": "identity", "alpha": 0.3},
    "uneven ranks": {"rank": {"image": 3, "text": 2}, "common_rank": 5, "alpha": {"image": 0.1, "text": 0.02}},
    "mlp": {"targets": ("q", "fc1", "fc2"), "last_layers": 1, "alpha": 0.05},
    "one tower": {"adapt": {"image": "frozen", "text": "mora"}, "alpha": 0.05},
}


def copies(model):
    return {name: tensor.clone() for name, tensor in mora.adapter_state_dict(model).items()}


def trained(model):
    """Somewhere else in every tensor, with magnitudes of both signs."""
    randomise(model)
    with torch.no_grad():
        for name, parameter in mora.adapter_parameters(model):
            if "magnitude" in name:
                parameter[::5] *= -1
    return model


def check(model, start, rel=1e-5, atol=1e-6):
    found = mora.diagnose(model, start=start)
    assert [one.name for one in found.projections] == [name for name, _ in model.mora.projections()]
    grams = {one.name: one for one in found.grams}
    for one in found.projections:
        figures, (gram, begun) = dense.expected(model, one.name, start)
        for field in FIELDS:
            value, wanted = getattr(one, field), figures[field]
            assert (value is None) == (wanted is None), field
            assert value is None or value == pytest.approx(wanted, rel=rel, abs=atol), (one.name, field)
        if model.mora.config.variant in ("no-gram", "fixed-gram"):
            assert not grams
            continue
        matrix = grams[one.name.rpartition(".")[0]]
        assert matrix.spectrum == pytest.approx(np.linalg.eigvalsh(gram)[::-1], rel=rel)
        assert matrix.start == pytest.approx(np.linalg.eigvalsh(begun)[::-1], rel=rel)
        assert matrix.distance == pytest.approx(np.linalg.norm(gram - begun) / np.linalg.norm(begun), rel=rel)
    return found


@pytest.mark.parametrize("world", WORLDS)
def test_figures_are_those_of_dense_algebra(world):
    model = mora.patch(open_clip_model(), **WORLDS[world])
    start = copies(model)
    found = check(trained(model), start)
    assert found.identity == (WORLDS[world].get("init") == "identity")
    assert any(one.common_negative > 0 for one in found.projections)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "open_clip"])
def test_of_every_library(name):
    model = mora.patch(MODELS[name](), last_layers=1)
    start = copies(model)
    check(trained(model), start)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_of_weights_in_half_precision(dtype):
    """Figures are of the stored weight in float64: the rounding of W_eff, which `merge` does, is no move."""
    model = mora.patch(open_clip_model().to(dtype), last_layers=1)
    start = copies(model)
    check(trained(model), start)


def test_nothing_moved_before_training():
    model = mora.patch(open_clip_model())
    found = mora.diagnose(model, start=copies(model))
    assert [one.learned_move for one in found.projections] == [0.0] * len(found.projections)
    assert {one.learned_rank for one in found.projections} == {0.0}
    assert {one.distance for one in found.grams} == {0.0}


def test_the_common_factors_are_enough_of_a_start():
    model = mora.patch(open_clip_model())
    start = copies(model)
    trained(model)
    drawn = {name: tensor for name, tensor in start.items() if name.startswith("common.")}
    whole, less = mora.diagnose(model, start=start), mora.diagnose(model, start=drawn)
    for one, other in zip(whole.projections, less.projections, strict=True):
        assert one.learned_move == pytest.approx(other.learned_move, rel=1e-6)


def test_without_a_start_the_learned_move_is_not_known_but_of_an_identity_start():
    model = trained(mora.patch(open_clip_model()))
    found = mora.diagnose(model)
    for figure in ("start_move", "learned_move", "start_new", "common_moved", "learned_rank"):
        assert {getattr(one, figure) for one in found.projections} == {None}
    assert all(one.total_move > 0 for one in found.projections)
    assert "the learned move is not known" in found.words()[0]
    identity = mora.patch(open_clip_model(), init="identity")
    start = copies(identity)
    trained(identity)
    for one in mora.diagnose(identity).projections:
        wanted = dense.expected(identity, one.name, start)[0]
        assert one.learned_move == pytest.approx(wanted["learned_move"], rel=1e-5)
        assert one.total_move == pytest.approx(wanted["total_move"], rel=1e-5)
        assert one.start_move == pytest.approx(0, abs=1e-6) and one.common_moved is None


def test_a_folder_is_a_start(tmp_path):
    model = mora.patch(open_clip_model())
    mora.save_adapter(model, tmp_path / "start")
    start = copies(model)
    trained(model)
    assert mora.diagnose(model, start=tmp_path / "start") == mora.diagnose(model, start=start)


def test_nothing_is_changed():
    model = trained(mora.patch(open_clip_model())).train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    mora.diagnose(model, {"image": torch.zeros(2, 3, 32, 32)})
    assert torch.equal(state, torch.get_rng_state()) and all(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_weight_of_zeros_and_one_that_is_not_finite():
    model = mora.patch(open_clip_model(), last_layers=1, targets=("q",))
    start, (_, projection) = copies(model), next(model.mora.projections())
    with torch.no_grad():
        projection.common_magnitude[0] = float("nan")
    found = mora.diagnose(model, start=start)
    assert found.words()[0] == "NaN or infinity in image.3.q: lower the learning rate"
    assert found.as_dict()["projections"][0]["total_move"] is None
    assert "nan" in found.table()


def test_starts_that_do_not_fit():
    model = mora.patch(open_clip_model())
    start = copies(model)
    with pytest.raises(ValueError, match=r"start: common.0.image is the adapter's own memory.*tensor.clone"):
        mora.diagnose(model, start=mora.adapter_state_dict(model))
    for wrong in ({}, start | {"common.0.image": start["common.0.image"][:3]}, start | {"image.9.v.specific_a": 1}):
        with pytest.raises(ValueError, match="start"):
            mora.diagnose(model, start=wrong)
