"""Weights out of adapters: sums of them, merging and the way back, and batches whose rows have each their own."""

import copy

import pytest
import torch

import mora
from mora.adapters.record import adapters_of, host_of
from tests.mora.models import SITES, embed, images, open_clip_model, tokens
from tests.mora.test_named import alone, families, same, several, tensors

SHARES = {"films": 0.7, "food": 0.5, "posts": -0.1}


def weights_of(model):
    """Every frozen weight that an adapter stands on, by name, in float64."""
    every = [projection for one in host_of(model).every().values() for projection in one.projections()]
    return {name: projection.weight.double().clone() for name, projection in every}


def expected_sum(model, shares):
    """W + sum w_i (W_eff,i - W) in float64."""
    base = weights_of(model)
    total = {name: weight.clone() for name, weight in base.items()}
    for name, share in shares.items():
        for label, projection in adapters_of(copy.deepcopy(model).double(), name).projections():
            total[label] += share * (projection.effective_weight() - base[label])
    return total


def read(model, towers, names):
    """The weights of a plain model by the same names."""
    found = {}
    for modality, tower in towers.items():
        for slot in tower.slots(model):
            for name in names:
                if name.startswith(f"{modality}.{slot.layer}."):
                    from mora.towers.block import whole

                    target = name.rpartition(".")[2]
                    found[name] = whole(slot, (target,)).weight(target)
    return found


@families
@torch.no_grad()
def test_a_weighted_sum_is_merged_in_float32(family):
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.bfloat16, 2**-8)):
        model = several(family).to(dtype)
        wanted, towers = expected_sum(model, SHARES), host_of(model).towers
        keys = list(SITES[family]().state_dict())
        assert mora.combine(model, SHARES) is model
        assert list(model.state_dict()) == keys
        for name, weight in read(model, towers, wanted).items():
            assert weight.dtype == dtype
            error = (weight.double() - wanted[name]).abs().max() / wanted[name].abs().max()
            assert error <= tolerance, f"{name}: {error:.1e}"


@families
@torch.no_grad()
def test_a_sum_of_one_is_what_merging_writes(family):
    for dtype in (torch.float32, torch.float16):
        one, other = several(family, ("films", "food")).to(dtype), several(family, ("films", "food")).to(dtype)
        mora.combine(one, {"food": 1.0})
        mora.merge(mora.set_adapter(other, "food"))
        state = other.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in one.state_dict().items())


@families
@pytest.mark.parametrize(
    ("fold", "dtype"),
    [
        (lambda model: mora.merge(model, keep=True), torch.float32),
        (lambda model: mora.combine(model, SHARES, keep=True), torch.bfloat16),
    ],
)
def test_unmerge_is_the_exact_way_back(family, fold, dtype):
    model = several(family).to(dtype)
    mora.set_adapter(model, "posts")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters, flags = dict(model.named_parameters()), {n: p.requires_grad for n, p in model.named_parameters()}
    plain = list(SITES[family]().state_dict())
    random = torch.random.get_rng_state()
    fold(model)
    assert list(model.state_dict()) == plain
    twin = copy.deepcopy(model)
    assert mora.unmerge(model) is model
    assert torch.equal(torch.random.get_rng_state(), random)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items()), "bit for bit"
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters()), "an optimizer knows them"
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert mora.active_adapter(model) == "posts"
    projection = next(one for name, one in adapters_of(model).projections() if name == "image.3.q")
    place = next(n for n, p in model.named_parameters() if p.data_ptr() == projection.weight.data_ptr())
    mora.unpatch(model)
    assert same(model, SITES[family]().to(dtype), image=images().to(dtype))
    with torch.no_grad():
        twin.get_parameter(place)[0].mul_(1.5)
    before = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
    with pytest.raises(ValueError, match=r"unmerge: the weights of image\.3\.q are not those that were merged"):
        mora.unmerge(twin)
    assert all(torch.equal(tensor, before[name]) for name, tensor in twin.state_dict().items())


def test_a_merge_without_keep_has_no_way_back():
    model = several("open_clip", ("films", "food"))
    mora.merge(model, keep=True)
    mora.merge(mora.patch(model))
    with pytest.raises(ValueError, match="model: got a CLIP that remembers no merge"):
        mora.unmerge(model)


@families
def test_rows_of_a_batch_have_each_their_own_adapter(family):
    """As each alone, forward and backward; adapters without a part in a projection leave theirs frozen."""
    model, names = several(family), ["films", "posts", "food", "films", "posts"]
    image, text = images(5), tokens(5)
    lonely = {name: embed(alone(family, name), image, text) for name in set(names)}
    with mora.using(model, names):
        found = embed(model, image, text)
        with torch.no_grad(), mora.keeping(model):
            kept = embed(model, image, text)
    for tower in range(2):
        wanted = torch.stack([lonely[name][tower][row] for row, name in enumerate(names)])
        for one in (found[tower], kept[tower]):
            torch.testing.assert_close(one, wanted, rtol=1e-4, atol=1e-5)
    for _, parameter in (pair for name in lonely for pair in mora.adapter_parameters(model, name)):
        parameter.requires_grad_(True)
    with mora.using(model, names):
        sum(one[0].square().sum() for one in embed(model, image, text)).backward()
    moved = {
        name: any(p.grad is not None and bool(p.grad.any()) for _, p in mora.adapter_parameters(model, name))
        for name in lonely
    }
    assert moved == {"films": True, "food": False, "posts": False}, "row 0 is of films"
    with (
        mora.using(model, names),
        pytest.raises(ValueError, match="name: got one for each of 5 rows, .* expected 5 rows"),
    ):
        embed(model)
    with mora.using(model, ["food"] * 3):
        assert mora.active_adapter(model) == "food"
    with mora.using(model, names), pytest.raises(ValueError, match="several adapters are active"):
        mora.active_adapter(model)
    with mora.using(model, names), mora.using(model, "food"):
        assert same(model, alone(family, "food"))


def test_models_that_put_their_batch_second_are_refused_for_rows():
    model = several("open_clip", ("films", "food"))
    model.visual.transformer.resblocks[3].attn.batch_first = False
    with pytest.raises(ValueError, match="batch second"), mora.using(model, ["films", "food"]):
        pass


def test_tensors_of_one_adapter_do_not_depend_on_the_others():
    assert list(tensors(several("open_clip"), "films")) == list(mora.adapter_state_dict(alone("open_clip", "films")))
    with pytest.raises(ValueError, match="already patched, .* or mora.add_adapter for another"):
        mora.patch(mora.patch(open_clip_model()))
