"""Adapters with names: each computes as it does alone on a copy, whichever others there are, and whoever asks."""

import copy
import pickle
import re

import pytest
import torch

import mora
from mora.adapters.record import adapters_of, host_of
from tests.mora.models import SITES, embed, open_clip_model, randomise
from tests.mora.test_keeping import in_threads
from tests.savings.worlds import Samples, classifier

families = pytest.mark.parametrize("family", SITES)
CONFIGS = {
    "films": mora.MoraConfig(rank=2, alpha=0.1, dropout=0.0, targets=("q", "v"), last_layers=2),
    "food": mora.MoraConfig(rank=3, alpha=0.05, dropout=0.0, targets=("k", "out", "fc1"), last_layers=3),
    "posts": mora.MoraConfig(
        rank=2, alpha=0.2, dropout=0.0, targets=("q",), last_layers=1, adapt={"image": "mora", "text": "frozen"}
    ),
}
SEEDS = {name: seed for seed, name in enumerate(CONFIGS, start=5)}


def alone(family, name):
    """A copy of the model with one adapter."""
    model = SITES[family]()  # which seeds, too
    torch.manual_seed(SEEDS[name])
    return randomise(mora.patch(model, CONFIGS[name]), SEEDS[name]).eval()


def several(family, names=tuple(CONFIGS)):
    """The same adapters on one model; the first is active."""
    model = SITES[family]()
    for name in names:
        torch.manual_seed(SEEDS[name])
        mora.add_adapter(model, name, CONFIGS[name]) if model_is_patched(model) else mora.patch(
            model, CONFIGS[name], name=name
        )
        with mora.using(model, name):
            randomise(model, SEEDS[name])
    return model.eval()


def model_is_patched(model):
    return hasattr(model, "mora")


@torch.no_grad()
def same(model, other, **inputs):
    """Whether two models embed alike, bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(embed(model, **inputs), embed(other, **inputs), strict=True))


def tensors(model, name):
    return {key: tensor.clone() for key, tensor in mora.adapter_state_dict(model, name).items()}


@families
def test_every_adapter_computes_as_it_does_alone(family):
    model, plain = several(family), SITES[family]()
    lonely = {name: alone(family, name) for name in CONFIGS}
    first = list(mora.patch(SITES[family](), CONFIGS["films"]).state_dict())
    assert [key for key in model.state_dict() if ".named." not in key] == first, "names of the first adapter stay"
    assert mora.active_adapter(model) == "films"
    for name in ("food", "films", "posts"):
        assert mora.set_adapter(model, name) is model
        assert mora.active_adapter(model) == name
        assert same(model, lonely[name]), name
        trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        assert trained == {id(parameter) for _, parameter in mora.adapter_parameters(model, name)}
        mora.verify(model)
        for other in CONFIGS:
            with mora.using(model, other):
                assert mora.active_adapter(model) == other
                assert same(model, lonely[other]), other
    mora.set_adapter(model, "films")
    with torch.no_grad(), mora.disabled(model):
        for found, expected in zip(embed(model), embed(plain), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert "beside it: food, posts" in str(mora.summary(model))
    assert mora.summary(model).base_parameters == sum(p.numel() for p in plain.parameters())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same(twin, lonely["films"])
        with mora.using(twin, "food"):
            assert same(twin, lonely["food"])
    keys = list(plain.state_dict())
    mora.unpatch(model)
    assert list(model.state_dict()) == keys
    assert same(model, plain)


@families
def test_what_is_used_belongs_to_its_thread(family):
    model = several(family, ("films", "food"))
    lonely, wrong = {name: alone(family, name) for name in ("films", "food")}, []

    def work(number):
        name = ("films", "food")[number % 2]
        for _ in range(3):
            with mora.using(model, name), mora.keeping(model) if number % 3 else mora.using(model, name):
                wrong.extend([number] * (not same(model, lonely[name])))

    assert not in_threads(work, 4)
    assert not wrong
    assert same(model, lonely["films"])


@families
def test_what_is_kept_of_each_is_its_own_and_notices_changes(family):
    """Also where fewer are kept than there are, and while an adapter comes and goes."""
    model, lonely = several(family), {name: alone(family, name) for name in CONFIGS}
    groups = {name: one.group for name, one in host_of(model).every().items()}
    for most in (1, 8):
        with torch.no_grad(), mora.keeping(model, adapters=most):
            for _ in range(2):
                for name in CONFIGS:
                    mora.set_adapter(model, name, trainable=False)
                    for again in range(2):
                        for found, expected in zip(embed(model), embed(lonely[name]), strict=True):
                            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=f"{name} {again}")
                    kept = [one for one, group in groups.items() if group._states]
                    assert len(kept) <= most
                    assert name in kept
                for name in CONFIGS:
                    for own in (model, lonely[name]):
                        dict(mora.adapter_parameters(own, name if own is model else None))["common.0.image"].mul_(1.1)
    with torch.no_grad(), mora.keeping(model):
        before = embed(model)
        state = next(iter(groups[mora.active_adapter(model)]._states.values()))
        builds = list(state.values.builds)
        with mora.using(model, "films"):
            embed(model)
        assert all(torch.equal(a, b) for a, b in zip(before, embed(model), strict=True))
        assert state.values.builds == builds, "what was kept is used again"
        mora.add_adapter(model, "late", CONFIGS["films"])
        with mora.using(model, "late"):
            late = embed(model)
        assert all(torch.equal(a, b) for a, b in zip(before, embed(model), strict=True))
        assert not torch.equal(late[0], before[0])


def test_a_classifier_says_what_its_active_adapter_does():
    """What stands for missing inputs is kept of one adapter and not taken for another's."""
    samples, model = Samples(), classifier("open_clip").eval()
    index = torch.arange(6)
    mora.add_adapter(model.model, "food", CONFIGS["food"])
    with mora.using(model.model, "food"):
        randomise(model.model, 9)

    def expected(name):
        twin = copy.deepcopy(mora.set_adapter(model.model, name) and model)
        twin.save(mora.Savings.none())
        return twin(*samples.batch(index))

    with torch.no_grad():
        wanted = {name: expected(name) for name in ("default", "food")}
        for keep in (False, True):
            with mora.keeping(model) if keep else torch.no_grad():
                for name in ("default", "food", "default", "food"):
                    mora.set_adapter(model.model, name)
                    torch.testing.assert_close(model(*samples.batch(index)), wanted[name], rtol=1e-4, atol=1e-5)
                    with mora.using(model.model, "default"):
                        found = model(*samples.batch(index))
                    torch.testing.assert_close(found, wanted["default"], rtol=1e-4, atol=1e-5)


@families
def test_training_one_moves_no_other(family):
    """One step of the active adapter is the step it takes alone; q and v share their input's masks no further."""
    model, single = several(family, ("films", "food")), alone(family, "food")
    mora.set_adapter(model, "food")
    before = tensors(model, "films")
    for own in (model, single):
        own.train()
        optimizer = torch.optim.AdamW([parameter for parameter in own.parameters() if parameter.requires_grad], lr=0.05)
        for _ in range(2):
            sum(embedding.square().mean() for embedding in embed(own)).backward()
            optimizer.step(), optimizer.zero_grad()
        own.eval()
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(model, "films").items())
    found = tensors(model, "food")
    assert all(torch.equal(tensor, found[name]) for name, tensor in tensors(single, None).items())
    model.visual.train() if family == "open_clip" else model.vision_model.train()
    sites = [projection for _, projection in adapters_of(model).projections()]
    assert {projection.training for projection in sites} == {True, False}, "a guest is in the mode of its site"


@families
def test_adapters_are_deleted_and_the_others_keep_their_parameters(family):
    model, lonely = several(family), {name: alone(family, name) for name in CONFIGS}
    owners = {name: dict(mora.adapter_parameters(model, name)) for name in CONFIGS}
    mora.delete_adapter(model, "food")
    assert same(model, lonely["films"])
    mora.set_adapter(model, "posts")
    mora.delete_adapter(model, "films")  # the first
    assert mora.active_adapter(model) == "posts"
    assert same(model, lonely["posts"])
    assert all(parameter is owners["posts"][name] for name, parameter in mora.adapter_parameters(model))
    assert list(model.state_dict()) == list(lonely["posts"].state_dict())
    with pytest.raises(ValueError, match="name: got 'posts', the model's only adapter, expected one of several"):
        mora.delete_adapter(model, "posts")
    mora.add_adapter(model, "food", CONFIGS["food"])
    mora.unpatch(model)
    assert same(model, SITES[family]())


def test_what_does_not_fit_is_refused_by_name_and_changes_nothing():
    model, plain = several("open_clip", ("films", "food")), open_clip_model()
    expected = embed(model)
    for call, message in [
        (lambda: mora.add_adapter(plain, "food"), "model: got a CLIP that is not patched"),
        (lambda: mora.add_adapter(model, "food"), "name: got 'food', which is taken, expected none of films, food"),
        (lambda: mora.add_adapter(model, "a.b"), "name: got 'a.b', expected 1 to 64 letters"),
        (lambda: mora.add_adapter(model, "train"), "name: got 'train', expected .* no method of nn.Module"),
        (lambda: mora.add_adapter(model, ""), "name: got '', expected"),
        (lambda: mora.patch(plain, name=3), "name: got 3, expected"),
        (lambda: mora.add_adapter(model, "new", rank=4000), "rank: got 4000, expected at most 64"),
        (lambda: mora.add_adapter(model, "new", layers=(9,)), "layers: got 9"),
        (
            lambda: mora.set_adapter(model, "posts"),
            "name: got 'posts', expected one of the model's adapters: films, foo",
        ),
        (lambda: mora.set_adapter(model, None), "name: got None, expected the name of an adapter"),
        (lambda: mora.delete_adapter(model, "films"), "name: got 'films', which is active, expected one that nobody"),
        (lambda: mora.adapter_state_dict(model, "posts"), "name: got 'posts', expected one of"),
        (lambda: mora.combine(model, {"posts": 1.0}), "name: got 'posts', expected one of"),
        (
            lambda: mora.combine(model, {"food": "much"}),
            re.escape("weights['food']: got 'much', expected a finite numb"),
        ),
        (lambda: mora.combine(model, {}), "weights: got {}, expected a number for each adapter"),
        (lambda: mora.unmerge(model), "model: got one that is patched, expected a merged one"),
        (lambda: mora.unmerge(plain), "model: got a CLIP that remembers no merge, expected one after mora.merge"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    for wrong, message in [("posts", "name: got 'posts', expected one of"), ([], "name: got no names"), (7, "got 7")]:
        with pytest.raises(ValueError, match=message), mora.using(model, wrong):
            pass
    with pytest.raises(TypeError, match="config: got dict, expected a MoraConfig"):
        mora.add_adapter(model, "new", {"rank": 4})
    with mora.using(model, "food"), pytest.raises(ValueError, match="name: got 'food', which is active"):
        mora.delete_adapter(model, "food")
    assert all(torch.equal(a, b) for a, b in zip(expected, embed(model), strict=True))
    assert list(host_of(model).every()) == ["films", "food"]


@families
def test_a_checkpoint_of_the_pretrained_model_loads_under_all_of_them(family):
    model = several(family, ("films", "food"))
    before = {name: tensors(model, name) for name in ("films", "food")}
    model.load_state_dict(SITES[family]().state_dict())
    assert all(torch.equal(t, before[n][k]) for n in before for k, t in tensors(model, n).items())
    other = several(family, ("films", "food"))
    randomise(other, 30)
    other.load_state_dict(model.state_dict())
    assert same(other, model)
    double = copy.deepcopy(model).double()
    assert {tensor.dtype for tensor in mora.adapter_state_dict(double, "food").values()} == {torch.float64}


@families
def test_files_are_loaded_by_name_beside_others_or_in_place(family, tmp_path):
    model = several(family, ("films", "food"))
    mora.save_adapters(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["films", "food"]
    fresh = mora.load_adapter(SITES[family](), tmp_path / "food", name="food")
    assert mora.active_adapter(fresh) == "food"
    mora.load_adapter(fresh, tmp_path / "films", name="films")
    assert mora.active_adapter(fresh) == "food"
    for name in ("films", "food"):
        assert same(mora.set_adapter(fresh, name), alone(family, name)), name
    pointers = {key: tensor.data_ptr() for key, tensor in mora.adapter_state_dict(fresh, "food").items()}
    with mora.using(fresh, "food"):
        randomise(fresh, 40)
    mora.load_adapter(fresh, tmp_path / "food", name="food")
    found = mora.adapter_state_dict(fresh, "food")
    assert {key: tensor.data_ptr() for key, tensor in found.items()} == pointers, "in place"
    assert all(torch.equal(tensor, found[key]) for key, tensor in tensors(model, "food").items())
    with pytest.raises(ValueError, match="targets: .*food has .*, the patched model has"):
        mora.load_adapter(fresh, tmp_path / "food", name="films")
    with pytest.raises(ValueError, match=re.escape("name: got '../x', expected")):
        mora.load_adapter(fresh, tmp_path / "food", name="../x")


def test_compiled_models_switch_and_swap_without_compiling_again(tmp_path):
    """Adapters of one configuration, neither of them the first, share one compiled model."""
    model = several("open_clip", ("films", "food"))
    for number, name in enumerate(("one", "two")):
        mora.add_adapter(model, name, CONFIGS["films"])
        with mora.using(model, name):
            randomise(model, 50 + number)
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    block, x = model.visual.transformer.resblocks[3], torch.randn(3, 5, 64)
    compiled_block = torch.compile(block, backend=backend, fullgraph=True)
    with torch.no_grad():
        for name in ("one", "two", "one"):
            mora.set_adapter(model, name, trainable=False)
            torch.testing.assert_close(compiled_block(x), block(x), rtol=1e-4, atol=1e-5)
        assert len(compiled) == 1, "no graph break, none anew"
        mora.save_adapter(model, tmp_path, "two")
        mora.load_adapter(model, tmp_path, name="one")
        found = compiled_block(x)
        mora.set_adapter(model, "two", trainable=False)
        torch.testing.assert_close(found, block(x), rtol=1e-4, atol=1e-5)
        assert len(compiled) == 1
    torch._dynamo.reset()
