"""The instruments measure what they say: time in turn, memory, saved bytes, launches, shares of a roofline."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks import harness
from benchmarks.case import Case, Provider, Work
from benchmarks.harness import Choice
from benchmarks.measure import timing
from benchmarks.measure.memory import footprint
from benchmarks.measure.roofline import Ceilings
from benchmarks.measure.timing import CudaTimer, Spread, interleave
from benchmarks.sizes import Scale


def test_variants_take_turns_in_alternating_order():
    order = []
    variants = {name: (lambda name=name: order.append(name)) for name in "abc"}

    class Timer:
        def measure(self, run, calls):
            run()
            return 1.0, 0.5

    found = interleave(variants, Timer(), rounds=3, warmup=0)
    assert "".join(order) == "abccbaabc"
    assert found["b"].work == [1.0] * 3
    assert found["b"].host == [0.5] * 3


def test_a_short_variant_is_called_many_times_per_measurement(monkeypatch):
    calls = []

    class Timer:
        def measure(self, run, count):
            calls.append(count)
            return timing.SHORTEST / 50, 0.0

    interleave({"a": lambda: None}, Timer(), rounds=2, warmup=1)
    assert calls == [1, 50, 50]


def test_quantiles():
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == Spread(3.5, 2.0, 5.0)
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0)


def test_footprint_of_a_known_graph():
    x, weight = torch.randn(100, 50, requires_grad=True), torch.randn(50, 50)

    def run():
        y = (x @ weight).exp()  # exp keeps its result, the product keeps weight
        y.sum().backward()
        x.grad = None

    seen = footprint(Provider(run, lambda: None, lambda: (x, weight)), "cpu", square=50)
    assert seen.saved == 4 * 100 * 50
    assert seen.saved_square == 4 * 50 * 50
    assert 2 * 4 * 100 * 50 <= seen.peak <= 6 * 4 * 100 * 50
    assert seen.launches >= 5


class Again(torch.autograd.Function):
    """exp that keeps its input and computes again, under autograd, on the way back."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = x.exp()
        return torch.autograd.grad(y, x, grad)[0]


def test_what_is_computed_again_in_backward_was_not_saved_for_it():
    x = torch.randn(100, 50, requires_grad=True)

    def run():
        Again.apply(x * 2).sum().backward()
        x.grad = None

    seen = footprint(Provider(run, lambda: None, lambda: (x,)), "cpu", square=None)
    assert seen.saved == 4 * 100 * 50


def test_what_a_provider_keeps_itself_counts():
    kept = torch.randn(8, 8)
    seen = footprint(Provider(lambda: None, lambda: None, kept=lambda: [kept]), "cpu", square=8)
    assert seen.saved == seen.saved_square == 4 * 64


def test_share_of_the_nearer_ceiling():
    ceilings = Ceilings(flops=1e12, bandwidth=1e10)
    assert ceilings.share(Work(flops=1e9, bytes=1e6), seconds=2e-3) == pytest.approx(0.5)
    assert ceilings.share(Work(flops=1e6, bytes=1e7), seconds=2e-3) == pytest.approx(0.5)


def test_the_cpu_rule():
    cpu, gpu = Scale("cpu", smoke=False), Scale("cuda", smoke=False)
    assert cpu.batches("layer", (1, 16, 32, 256)) == [1, 8]
    assert cpu.batches("model", (16, 32, 256)) == [1, 2]
    assert gpu.batches("model", (16, 32, 256)) == [16, 32, 256]


class Event:
    def __init__(self, enable_timing):
        self.at = None

    def record(self):
        self.at = Event.clock
        Event.clock += 4.0

    def elapsed_time(self, end):
        return end.at - self.at


@pytest.mark.parametrize("cold", [False, True])
def test_events_time_the_device_and_a_cold_run_flushes_first(monkeypatch, cold):
    done = []
    flush = SimpleNamespace(zero_=lambda: done.append("flush"))
    fake = SimpleNamespace(
        Event=Event,
        synchronize=lambda: done.append("wait"),
        current_device=lambda: 0,
        get_device_properties=lambda device: SimpleNamespace(L2_cache_size=1),
    )
    monkeypatch.setattr(timing.torch, "cuda", fake)
    monkeypatch.setattr(timing.torch, "empty", lambda *sizes, **options: flush)
    Event.clock = 0.0
    seconds, host = CudaTimer(cold).measure(lambda: done.append("run"), 4)
    assert done == (["flush", "wait", "run", "wait"] if cold else ["wait", *["run"] * 4, "wait"])
    assert seconds == pytest.approx(4e-3 / (1 if cold else 4))
    assert host < 1e-2


def test_a_choice_leaves_out_what_was_not_chosen_but_never_the_baseline():
    one = Provider(lambda: None, lambda: None)
    case = Case("operations", {}, "official", {"official": one, "torch": one, "triton": one})
    assert [*Choice(("triton",)).of(case).providers] == ["official", "triton"]
    assert [*Choice().of(case).providers] == [*case.providers]


def test_no_graphs_where_the_baseline_cannot_be_captured(monkeypatch):
    def refuse(run):
        raise RuntimeError("operation not permitted when stream is capturing")

    capturable, eager_only = (
        Provider(lambda: None, lambda: None),
        Provider(lambda: None, lambda: None, capturable=False),
    )
    monkeypatch.setattr(harness, "CudaTimer", lambda cold=False: cold)
    monkeypatch.setattr(harness, "captured", lambda run: run)
    gpu = Scale("cuda", False)
    case = Case("projection", {}, "official", {"official": capturable, "triton": eager_only})
    found = harness.modes(case, gpu)
    assert [*found] == ["eager", "eager, cold L2", "graph"]
    assert [cold for cold, _ in found.values()] == [False, True, False]
    assert [*found["graph"][1]] == ["official"]
    assert [*harness.modes(case, gpu, ("eager", "graph"))] == ["eager", "graph"]
    assert [*harness.modes(replace(case, baseline="triton"), gpu)] == ["eager", "eager, cold L2"]
    monkeypatch.setattr(harness, "captured", refuse)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert [*harness.modes(case, gpu, ("graph",))] == []
