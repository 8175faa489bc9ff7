"""Nothing kept is ever stale, and a model in eval is anybody's: averages swapped in, threads, `disabled`, `forget`."""

import copy
import pickle
import threading
from contextlib import nullcontext

import pytest
import torch
import torch.utils.checkpoint

import mora
from mora_kernels.kept import scope_of
from mora_kernels.launches import counted
from tests.mora.models import MODELS, SITES, embed, images, open_clip_model, randomise, tokens
from tests.savings.worlds import Samples, classifier

families = pytest.mark.parametrize("family", MODELS)
INDEX = torch.arange(6)


def fresh(model, samples):
    """What a copy that never ran before says, with nothing left out."""
    twin = copy.deepcopy(model)
    twin.save(mora.Savings.none())
    with torch.no_grad():
        return twin.eval()(*samples.batch(INDEX))


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def train(model, samples, steps=2):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model.train()
    for _ in range(steps):
        torch.nn.functional.cross_entropy(model(*samples.batch(INDEX)), samples.labels[INDEX]).backward()
        optimizer.step(), optimizer.zero_grad()
    model.eval()


def torch_ema(model):
    from torch_ema import ExponentialMovingAverage

    average = ExponentialMovingAverage([p for p in model.parameters() if p.requires_grad], decay=0.5)
    return average.update, average.average_parameters


def diffusers_ema(model):
    training_utils = pytest.importorskip("diffusers.training_utils")
    parameters = [p for p in model.parameters() if p.requires_grad]
    average = training_utils.EMAModel(parameters, decay=0.5)

    class Averaged:
        def __enter__(self):
            average.store(parameters)
            average.copy_to(parameters)

        def __exit__(self, *_):
            average.restore(parameters)

    return lambda: average.step(parameters), Averaged


@families
@pytest.mark.parametrize("make", [torch_ema, diffusers_ema])
def test_averages_that_are_swapped_in_and_out(family, make):
    """They write `param.data`, which no counter sees: inside, the averaged adapter; after it, the trained one."""
    samples, model = Samples(), classifier(family)
    update, averaged = make(model)
    for _ in range(2):
        train(model, samples)
        update()
        with torch.no_grad():
            trained = model(*samples.batch(INDEX))
            close(trained, fresh(model, samples))
            with averaged():
                inside = model(*samples.batch(INDEX))
                close(inside, fresh(model, samples))
            assert torch.equal(model(*samples.batch(INDEX)), trained)
    assert not torch.allclose(inside, trained, atol=1e-4)


@pytest.mark.parametrize("family", SITES)
def test_what_nobody_counts_is_seen_between_any_two_calls(family):
    """Frozen weights too, and between one tower and the other."""
    model, samples = classifier(family).eval(), Samples()
    clip = model.model
    with torch.no_grad():
        weights = [projection.weight for _, projection in clip.mora.projections()]
        for tensor in (*dict(mora.adapter_parameters(clip)).values(), *weights):
            before = [one.clone() for one in embed(clip)]
            tensor.data.mul_(1.1)
            assert any(not torch.equal(a, b) for a, b in zip(before, embed(clip), strict=True))
        close(model(*samples.batch(INDEX)), fresh(model, samples))
        next(clip.parameters()).data.mul_(1.1)  # far below the adapters
        close(model(*samples.batch(INDEX)), fresh(model, samples))
        expected = embed(copy.deepcopy(clip))
        factor = dict(mora.adapter_parameters(clip))["common.0.text"]
        image, _ = embed(clip)
        factor.data.mul_(2)
        _, text = embed(clip)
        twice = embed(copy.deepcopy(clip))
        assert torch.equal(image, expected[0]) and torch.equal(text, twice[1]) and not torch.equal(text, expected[1])


def test_keeping_saves_the_builds_and_notices_what_is_counted():
    model, samples = classifier("open_clip", backend="triton").eval(), Samples()
    with torch.no_grad(), mora.keeping(model) as given:
        assert given is model
        for times in (1, 2):
            with counted(library=False) as launches:
                for _ in range(2):
                    model(*samples.batch(INDEX))
            assert launches.count("build_group_kernel") == 1, times
            dict(mora.adapter_parameters(model.model))["common.0.text"].mul_(1.5)
        close(model(*samples.batch(INDEX)), fresh(model, samples))
    with torch.no_grad(), counted(library=False) as launches:
        for _ in range(2):
            model(*samples.batch(INDEX))
    assert launches.count("build_group_kernel") == 2, "one a call"


def test_keeping_takes_what_holds_a_model_and_nothing_else():
    holder = torch.nn.Sequential(mora.patch(open_clip_model()))
    with mora.keeping(holder):
        mora.forget(holder)
    with pytest.raises(TypeError, match="model: got int"), mora.keeping(3):
        pass
    with pytest.raises(TypeError, match="model: got str"):
        mora.forget("clip")


def in_threads(work, count):
    """Run `work(number)` in threads that start together; what they raised."""
    barrier, raised = threading.Barrier(count), []

    def run(number):
        try:
            barrier.wait()
            work(number)
        except Exception as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


@pytest.mark.parametrize(("family", "keep"), [*((family, False) for family in MODELS), ("open_clip", True)])
def test_eight_threads_share_a_classifier_in_eval(family, keep):
    """Also the first call after `patch`, which finds out where towers can be cut."""
    samples, expected = Samples(), []
    one = classifier(family).eval()
    with torch.no_grad():
        for at in range(8):
            expected.append(one(*samples.batch(torch.tensor([at, at + 1, at + 3]))))
    model, wrong = classifier(family).eval(), []

    def work(number):
        with torch.no_grad(), mora.keeping(model) if keep else nullcontext():
            for step in range(4):
                at = (number + step) % 8
                found = model(*samples.batch(torch.tensor([at, at + 1, at + 3])))
                if not torch.allclose(found, expected[at], rtol=1e-4, atol=1e-5):
                    wrong.append((number, at))

    assert not in_threads(work, 8)
    assert not wrong
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("family", SITES)
def test_disabled_is_this_threads_own(family):
    model = randomise(mora.patch(MODELS[family]())).eval()
    with torch.no_grad():
        plain, adapted = embed(MODELS[family]()), embed(model)
    wrong = []

    def work(number):
        for _ in range(5):
            with torch.no_grad(), mora.disabled(model) if number % 2 else nullcontext():
                found = embed(model)
            for one, other in zip(found, plain if number % 2 else adapted, strict=True):
                wrong.extend([number] * (not torch.allclose(one, other, rtol=1e-4, atol=1e-5)))

    assert not in_threads(work, 6)
    assert not wrong
    with torch.no_grad():
        for one, other in zip(embed(model), adapted, strict=True):
            assert torch.equal(one, other), "on again, for good"


@pytest.mark.parametrize("family", SITES)
def test_disabled_blocks_may_nest_overlap_and_be_copied(family):
    model = randomise(mora.patch(MODELS[family]())).eval()
    with torch.no_grad():
        adapted = embed(model)[0]
        first, second = mora.disabled(model), mora.disabled(model)
        first.__enter__()
        twins = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        second.__enter__()
        assert not torch.equal(embed(model)[0], adapted)
        first.__exit__(None, None, None)
        second.__exit__(None, None, None)
        assert torch.equal(embed(model)[0], adapted)
        for twin in twins:
            torch.testing.assert_close(embed(twin)[0], adapted)


@pytest.mark.parametrize("family", SITES)
def test_a_projection_called_by_itself_computes_by_itself(family):
    """q, k, v of one attention are computed together only while the attention runs: nothing waits between calls."""
    model = randomise(mora.patch(MODELS[family](), targets=("q", "v"), dropout=0.5)).train()
    named = {name: module for name, module in model.named_modules() if isinstance(module, mora.MoraLinear)}
    q, v = list(named.values())[:2]
    x = torch.randn(3, 5, q.in_features)
    torch.manual_seed(0)
    q(x)
    v.specific_magnitude.data.zero_()
    torch.manual_seed(1)
    found = v(x)
    torch.manual_seed(1)
    assert torch.equal(found, v(x))


def test_a_model_that_goes_to_the_meta_device_and_back_is_disabled_right():
    """Parameters become other objects then: the pretrained computation reads the present ones."""
    model = mora.patch(open_clip_model(), targets=("q", "out"))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.to("meta").to_empty(device="cpu")
    model.load_state_dict(state)
    model.attn_mask.copy_(open_clip_model().attn_mask)  # no part of open_clip's checkpoints
    with torch.no_grad(), mora.disabled(model):
        for one, other in zip(embed(model.eval()), embed(open_clip_model()), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_disabled_holds_for_what_checkpointing_computes_again(reentrant):
    """Within the block, in whichever thread the backward pass runs."""
    model = randomise(mora.patch(open_clip_model())).eval()
    block, x = model.visual.transformer.resblocks[3], torch.randn(2, 5, 64, requires_grad=True)
    with mora.disabled(model):
        (expected,) = torch.autograd.grad(block(x).square().sum(), x)
        total = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=reentrant).square().sum()
        worker = threading.Thread(target=total.backward)
        worker.start(), worker.join()
    torch.testing.assert_close(x.grad, expected)


def test_a_compiled_model_is_disabled_for_one_thread():
    model = randomise(mora.patch(open_clip_model())).eval()
    compiled, x = torch.compile(model.visual, backend="eager"), images()
    with torch.no_grad():
        adapted, plain = compiled(x), open_clip_model().visual(x)
        found = {}

        def work(number):
            with torch.no_grad(), mora.disabled(model) if number else nullcontext():
                found[number] = compiled(x)

        assert not in_threads(work, 2)
        torch.testing.assert_close(found[0], adapted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[1], plain, rtol=1e-4, atol=1e-5)


def test_dropout_under_inference_mode():
    model = randomise(mora.patch(MODELS["hugging_face"](), dropout=0.5)).train()
    with torch.inference_mode():
        first, second = embed(model)[0], embed(model)[0]
    assert not torch.equal(first, second)


@families
def test_a_forward_call_of_a_model_builds_all_projections_together_and_keeps_nothing(family, monkeypatch):
    from mora_kernels.torch.group import Engine

    def call():
        return model(images(), tokens()) if hasattr(model, "encode_image") else model(tokens(), images())

    model, built, build = mora.patch(MODELS[family]()), [], Engine.build
    monkeypatch.setattr(Engine, "build", lambda *given, **named: built.append([*given[2]]) or build(*given, **named))
    everything = [*range(len([*model.mora.projections()]))]
    for number in (1, 2):
        call()
        assert built == [everything] * number
    stop = next(model.mora.slots()).block.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call()
    stop.remove()
    assert not model.mora.one_call.calls and scope_of(model.mora.group) is None
    twin = mora.unpatch(copy.deepcopy(model))
    assert not twin._forward_hooks and not twin._forward_pre_hooks and not twin._forward_hooks_always_called
    call()
    assert built == [everything] * 4
