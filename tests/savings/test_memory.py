"""What is kept for the backward pass: nothing of the frozen blocks, one tensor of a frozen feed-forward layer."""

import pytest
import torch
from torch import nn

import mora
from mora.towers.feed_forward import feed_forward
from mora_kernels.torch import group
from tests.savings.worlds import FAMILIES, Samples, classifier

INDEX = torch.arange(6)
families = pytest.mark.parametrize("family", FAMILIES)


def saved(model, work):
    """Bytes that autograd keeps of a call, parameters left out."""
    owned = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = work()
    return sum(found.values()), result


@families
@pytest.mark.parametrize("modality", ["image", "text"])
def test_nothing_of_the_frozen_blocks_is_kept(family, modality):
    model, samples = classifier(family).train(), Samples()
    model.saved()  # what it tries to find that out
    size, hidden = saved(model, lambda: model.prefix(modality, getattr(samples, modality)))
    assert size == 0
    assert not hidden.rows.requires_grad and hidden.rows.grad_fn is None


@families
def test_a_step_keeps_less(family):
    samples = Samples()
    batch = samples.batch(INDEX)
    sizes = {}
    for name in ("none", "lean", "pooled", "trimmed", "all"):
        model = classifier(family, mora.Savings.parse(name), dropout=0.1).train()
        model(*batch)
        sizes[name], _ = saved(model, lambda model=model: model(*batch))
    parts = {"lean", "pooled", "trimmed"}
    if not any(type(module).__name__.startswith("QuickGELU") for module in model.modules()):
        parts -= {"lean"}  # of GELU in one piece autograd keeps one tensor as well
    if family == "siglip":
        parts -= {"trimmed"}
    assert all(sizes["all"] < sizes[part] or parts == {part} for part in parts)
    assert all(sizes[part] < sizes["none"] for part in parts)
    assert sizes["all"] < (0.9 if family == "siglip" else 0.6) * sizes["none"]


@families
@pytest.mark.parametrize("cached", [False, True], ids=["inputs", "cached"])
def test_the_backward_pass_stops_at_the_first_adapted_projection(family, cached, monkeypatch):
    """Of the first adapted block nobody asks for dX; of the others everybody does."""
    asked, backward = [], group.Engine.products_backward

    def spy(self, indices, grad, x, read, needs_x):
        asked.extend((index, needs_x) for index in indices)
        return backward(self, indices, grad, x, read, needs_x)

    monkeypatch.setattr(group.Engine, "products_backward", spy)
    samples, model = Samples(), classifier(family).train()
    names = [name for name, _ in model.model.mora.projections()]
    batch = samples.cached(mora.PrefixCache(model, samples), INDEX) if cached else samples.batch(INDEX)
    model(*batch).sum().backward()
    first = min(int(name.split(".")[1]) for name in names)
    assert sorted(index for index, _ in asked) == list(range(len(names)))
    for index, needs_x in asked:
        assert needs_x == (int(names[index].split(".")[1]) > first), names[index]


@pytest.mark.parametrize("act", [nn.GELU(), nn.ReLU(), torch.tanh], ids=["gelu", "relu", "function"])
def test_a_lean_feed_forward_layer_is_the_plain_one(act, monkeypatch):
    monkeypatch.setitem(__import__("mora.towers.feed_forward", fromlist=["CHUNK"]).CHUNK, "cpu", 64)
    torch.manual_seed(0)
    up, down = (layer.double().requires_grad_(False) for layer in (nn.Linear(6, 24), nn.Linear(24, 6)))
    x = torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True)
    lean, plain = feed_forward(up, act, down, x), down(act(up(x)))
    torch.testing.assert_close(lean, plain, rtol=1e-13, atol=1e-13)
    weights = torch.randn_like(plain)
    found, expected = (torch.autograd.grad((y * weights).sum(), x)[0] for y in (lean, plain))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_lean_feed_forward_layer_under_autocast():
    torch.manual_seed(0)
    up, down = (layer.requires_grad_(False) for layer in (nn.Linear(32, 128), nn.Linear(128, 32)))
    x = torch.randn(4, 32, requires_grad=True)
    gradients = []
    for make in (lambda: feed_forward(up, nn.functional.gelu, down, x), lambda: down(nn.functional.gelu(up(x)))):
        with torch.autocast("cpu", torch.bfloat16):
            y = make()
        assert y.dtype == torch.bfloat16
        gradients.append(torch.autograd.grad(y.float().square().sum(), x)[0])
    assert (gradients[0] - gradients[1]).norm() <= 2e-2 * gradients[1].norm()


def test_what_is_trained_or_watched_is_left_alone():
    up, down = nn.Linear(4, 8).requires_grad_(False), nn.Linear(8, 4).requires_grad_(False)
    x = torch.randn(2, 4, requires_grad=True)
    assert feed_forward(up, torch.tanh, down, x) is not None
    assert feed_forward(up, torch.tanh, down, x.detach()) is None
    hook = up.register_forward_hook(lambda *_: None)
    assert feed_forward(up, torch.tanh, down, x) is None
    hook.remove()
    up.bias.requires_grad_(True)
    assert feed_forward(up, torch.tanh, down, x) is None
