"""An adapter knows the weights it was trained on: others are refused by name, the same in another dtype is not."""

import json
import shutil

import pytest
import torch

import mora
from mora.checkpoint.base import SAME, distance, sketch
from tests.mora.models import MODELS, embed, hugging_face_model, open_clip_twin, randomise

families = pytest.mark.parametrize("family", MODELS)


@pytest.fixture(params=MODELS)
def make(request):
    return MODELS[request.param]


@pytest.fixture
def folder(make, tmp_path):
    return mora.save_adapter(randomise(mora.patch(make(), targets=("q", "out"))), tmp_path / "adapter")


def adapted(model):
    return hasattr(model, "mora")


def test_other_weights_of_the_same_shape_are_refused_by_name(make, folder):
    for model in (make(seed=1), mora.patch(make(seed=1), targets=("q", "out"))):
        before, patched = {name: tensor.clone() for name, tensor in model.state_dict().items()}, adapted(model)
        with pytest.raises(ValueError, match=r"^base: .*other weights .*image\.2\.q \(relative.*text.*base='any'"):
            mora.load_adapter(model, folder)
        assert adapted(model) == patched
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        mora.load_adapter(model, folder, base="any")
        assert adapted(model)
    with pytest.raises(ValueError, match="^base: got 'whatever', expected one of 'same', 'any'"):
        mora.load_adapter(make(), folder, base="whatever")


def test_one_changed_projection_is_named_alone(make, folder):
    model = make()
    with torch.no_grad():
        mora.patch(model, targets=("q", "out"))
        dict(model.mora.projections())["text.3.out"].weight.mul_(1.02)
        mora.unpatch(model)
    with pytest.raises(ValueError, match=r"this model's: text\.3\.out \(relative difference 0\.0\d+\); load"):
        mora.load_adapter(model, folder)


@pytest.mark.parametrize(
    "move",
    [
        lambda model: model.half(),
        lambda model: model.bfloat16(),
        lambda model: model.double(),
        lambda model: model.bfloat16().half().float(),
    ],
    ids=["half", "bfloat16", "double", "there and back"],
)
def test_the_same_weights_rounded_are_the_same(make, folder, move, tmp_path):
    assert adapted(mora.load_adapter(move(make()), folder))
    other = mora.save_adapter(mora.patch(move(make()), targets=("q",)), tmp_path / "other")
    assert adapted(mora.load_adapter(make(), other))


def test_the_same_weights_in_another_library_are_the_same(tmp_path):
    first = hugging_face_model()
    second = open_clip_twin(first)
    folder = mora.save_adapter(randomise(mora.patch(first, targets=("q", "k", "v", "out"))), tmp_path / "adapter")
    mora.load_adapter(second, folder)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(embed(first), embed(second), strict=True))


def test_weights_that_merging_changed_are_others(make, folder):
    with pytest.raises(ValueError, match="^base:"):
        mora.load_adapter(mora.merge(mora.load_adapter(make(), folder)), folder)


def test_files_without_or_with_a_broken_fingerprint(make, folder):
    path = folder / "adapter_config.json"
    saved = json.loads(path.read_text())
    assert len(path.read_bytes()) < 8000
    old = {name: value for name, value in saved.items() if name != "base"}
    path.write_text(json.dumps(old))
    with pytest.warns(UserWarning, match=r"adapter_config\.json does not say which base weights"):
        mora.load_adapter(make(), folder)
    for broken in ([], {}, None, 3, {"image.2.q": [1e308] * 17}, {"image.2.q": ["1"] * 17}, {"image.2.q": [10**400]}):
        path.write_text(json.dumps({**saved, "base": broken}))
        with pytest.raises(ValueError, match=r"base: .*image\.2\.q"):
            mora.load_adapter(make(), folder)
    shutil.rmtree(folder)


def test_weights_that_are_not_there_are_refused(make, folder):
    with pytest.raises(ValueError, match="is on the meta device, expected weights"):
        mora.load_adapter(make().to("meta"), folder)
    with pytest.raises(ValueError, match="is on the meta device, expected weights"):
        mora.save_adapter(mora.patch(make().to("meta")), folder)


def test_a_sketch_tells_a_difference_from_rounding():
    generator = torch.Generator().manual_seed(0)
    for size in (8, 48, 64):
        for _ in range(50):
            weight = torch.randn(size, size, generator=generator)
            moved = weight + 0.02 * torch.randn(size, size, generator=generator)
            assert (
                distance(sketch(weight), sketch(weight.bfloat16().half()))
                < SAME
                < distance(sketch(weight), sketch(moved))
            )
    assert distance(sketch(torch.zeros(4, 4)), sketch(torch.zeros(4, 4))) == 0
