"""Every token by W_eff of its modality: against a float64 loop over tokens, forward and backward."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import mora
from mora.streams import Route, StreamSite
from mora_kernels import effective_weight
from mora_kernels.launches import counted
from mora_kernels.testing import assert_parity
from tests.mora.models import randomise
from tests.streams.models import MODELS, inputs_of, run

TARGETS = ("q", "k", "v", "out")
TABLE = {torch.float64: 1e-9, torch.float32: 2e-5}
pytestmark = pytest.mark.usefixtures("poisoned")
names = pytest.mark.parametrize("name", MODELS)


def by_tokens(kinds):
    """`StreamSite.forward` as equation (2) says it, token by token, by the reference."""

    def forward(site, x):
        weights = {}
        for modality, one in site.adapted.items():
            factors = (*one.factors(), one.alpha)
            weights[modality] = effective_weight(site.weight, *factors, backend="reference", common_out=one.common_out)
        rows = []
        for row, modalities in zip(x, kinds, strict=True):
            pairs = zip(row, modalities, strict=True)
            rows.append(torch.stack([weights.get(modality, site.weight) @ token for token, modality in pairs]))
        return torch.stack(rows) + (0 if site.bias is None else site.bias)

    return forward


def outcome(model, given):
    """The output and the gradient of every adapter of a scalar of it."""
    model.zero_grad(set_to_none=True)
    output = run(model, given)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(7)).to(output)
    (output * direction).sum().backward()
    return {"output": output.detach()} | {name: p.grad for name, p in mora.adapter_parameters(model)}


def check(monkeypatch, name, backend, dtype, places=(1, 4), **options):
    """Compare a model with the loop, by the name of every gradient."""
    given, kinds = inputs_of(name, places)
    settings = {"targets": TARGETS, "rank": 3, "dropout": 0.0, "backend": backend, **options}
    model = randomise(mora.patch(MODELS[name]().to(dtype), **settings)).train()
    actual = outcome(model, given)
    with monkeypatch.context() as patched:
        patched.setattr(StreamSite, "forward", by_tokens(kinds))
        expected = outcome(copy.deepcopy(model).double(), given)
    assert [name for name, gradient in actual.items() if gradient is None] == []
    for key, value in expected.items():
        assert_parity(key, actual[key], value, TABLE)
    return model, actual


@names
@pytest.mark.parametrize("variant", ["official", "no-gram"])
def test_a_stream_is_the_loop_over_its_tokens(monkeypatch, name, variant):
    check(monkeypatch, name, "torch", torch.float64, variant=variant)


def test_an_mlp_is_the_loop_over_its_tokens(monkeypatch):
    check(monkeypatch, "vilt", "torch", torch.float64, targets=("v", "fc1", "fc2"))


def test_one_modality_alone_is_adapted(monkeypatch):
    adapt = {"image": "frozen", "text": "mora"}
    model, _ = check(monkeypatch, "llava", "torch", torch.float64, adapt=adapt)
    assert {one.modality for _, one in mora.adapters.record.adapters_of(model).projections()} == {"text"}


@names
def test_the_reference_is_the_loop_as_well(monkeypatch, name):
    check(monkeypatch, name, "reference", torch.float64, targets=("q", "v"))


@pytest.mark.parametrize(("name", "places"), [("vilt", None), ("llava", (1, 4))])
def test_the_fused_kernels_are_the_loop(monkeypatch, name, places):
    check(monkeypatch, name, "triton", torch.float32, places, targets=("q", "v"), last_layers=1)


def test_both_weights_of_a_block_are_built_by_one_launch():
    given, _ = inputs_of("llava")
    settings = {"targets": ("v",), "last_layers": 1, "dropout": 0.0, "backend": "triton"}
    model = randomise(mora.patch(MODELS["llava"](), **settings)).train()
    outcome(model, given)
    with torch.no_grad():
        dict(mora.adapter_parameters(model))["common.0.image"].mul_(1.0)
    with counted(library=False) as launches:
        outcome(model, given)
    assert sorted(n for n in launches if "build" in n) == ["build_group_backward_kernel", "build_group_kernel"]


@names
def test_spans_and_select_are_the_same(monkeypatch, name):
    """Rows that are alike go by a product for each span; by one product and a select they come out the same."""
    given, kinds = inputs_of(name, (3, 3))
    model = randomise(mora.patch(MODELS[name]().double(), targets=TARGETS, dropout=0.0)).train()
    by_spans, apply, paths = outcome(model, given), Route.apply, []

    def apply_select(route, *arguments):
        index = torch.tensor([[route.modalities.index(m) for m in row] for row in kinds], dtype=torch.int8)
        paths.append(route.spans)
        return apply(Route(route.modalities, None, index), *arguments)

    monkeypatch.setattr(Route, "apply", apply_select)
    for key, value in outcome(model, given).items():
        assert_parity(key, value, by_spans[key], TABLE)
    assert len(paths) == 8
    assert None not in paths


class Products(TorchDispatchMode):
    """Counts matrix products, and gathers of tokens."""

    def __init__(self):
        super().__init__()
        self.products, self.gathers = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.products += name in ("mm", "addmm", "bmm", "baddbmm")
        self.gathers += name in ("index", "index_select", "gather", "index_put_", "nonzero")
        return function(*args, **(kwargs or {}))


@torch.no_grad()
@pytest.mark.parametrize(
    ("places", "products"), [((3, 3), 3), ((0, 0), 2), ((1, 4), 1), ((1, None), 1), ((None, None), 1)]
)
def test_a_run_of_tokens_is_a_product_and_rows_that_differ_are_one(places, products):
    model, ids = mora.patch(MODELS["llava"]()).eval(), inputs_of("llava", places)[0]["input_ids"]
    site, x = model.model.language_model.layers[1].self_attn.v_proj, torch.randn(2, 11, 32)
    with mora.keeping(model), mora.route(model, ids):
        site(x)  # builds W_eff
        with Products() as counted_products:
            site(x)
    assert (counted_products.products, counted_products.gathers) == (products, 0)
    mora.merge(model, per_modality=True)
    with mora.route(model, ids), Products() as counted_products:
        model.model.language_model.layers[1].self_attn.v_proj(x)
    assert (counted_products.products, counted_products.gathers) == (products, 0)


@names
@pytest.mark.parametrize("places", [(3, 3), (1, 4)])
@torch.no_grad()
def test_dropout_acts_on_the_input_of_the_whole_projection(name, places):
    """Equation (2): solved for its input, every element is 0 or x / (1 - p), and q and v draw masks of their own."""
    given, kinds = inputs_of(name, places)
    model = randomise(mora.patch(MODELS[name]().double(), targets=("q", "out"), dropout=0.5, last_layers=1))
    seen, masks = [], []
    sites = [module for module in model.modules() if isinstance(module, StreamSite)]
    for site in sites:
        site.train()
        site.register_forward_hook(lambda site, args, y: seen.append((site, args[0], y)))
    run(model, given)
    for site, x, y in seen:
        y = y if site.bias is None else y - site.bias
        for modality, one in site.adapted.items():
            here = torch.tensor([[kind == modality for kind in row] for row in kinds])
            dropped = torch.linalg.solve(one.effective_weight(), y[here].T).T
            kept = (dropped.abs() > 1e-9 * x[here].abs()) | (x[here] == 0)
            torch.testing.assert_close(dropped, 2 * x[here] * kept, rtol=1e-6, atol=1e-8)
            assert 0.3 < kept.double().mean() < 0.7
            masks.append(kept)
    assert len(masks) == 4
    assert not torch.equal(masks[0], masks[2])
