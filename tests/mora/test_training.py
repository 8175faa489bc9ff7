"""What a training loop does to a patched model: autocast, checkpointing, compile, accumulation, several processes."""

import copy
from functools import partial

import pytest
import torch
import torch.distributed as dist
import transformers
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import mora
from mora_kernels.testing import LINEAR_TOLERANCE, assert_parity
from tests.mora.models import MODELS, SITES, embed, images, open_clip_model, randomise, tokens
from tests.processes import Running, free_port

families = pytest.mark.parametrize("family", MODELS)
TABLE = {torch.float32: 2e-5}


def make(family, **options):
    return randomise(mora.patch(MODELS[family](), targets=("q", "k", "v", "out"), **options)).train()


def step(model, **inputs):
    """Gradients of one step, by adapter name."""
    model.zero_grad(set_to_none=True)
    sum(embedding.float().square().mean() for embedding in embed(model, **inputs)).backward()
    return {name: parameter.grad.clone() for name, parameter in mora.adapter_parameters(model)}


def same(actual, expected, table=TABLE):
    for name, gradient in expected.items():
        assert_parity(name, actual[name], gradient, table)


@families
def test_gradients_do_not_depend_on_the_backend(family):
    expected = step(make(family, dropout=0.0, backend="reference"))
    same(step(make(family, dropout=0.0, backend="torch")), expected)


@families
def test_dropout_is_reproducible_and_differs_per_projection(family):
    model = make(family, dropout=0.5)
    torch.manual_seed(0)
    first = step(model)
    torch.manual_seed(0)
    again = step(model)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["image.3.q.specific_b"], step(model)["image.3.q.specific_b"])


@families
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(family, dtype):
    model = make(family, dropout=0.0)
    expected = step(model)
    with torch.autocast("cpu", dtype=dtype):
        assert embed(model)[0].dtype == dtype
        actual = step(model)
    assert all(gradient.dtype == torch.float32 for gradient in actual.values())
    same(actual, expected, {torch.float32: 20 * LINEAR_TOLERANCE[dtype]})  # attention and MLP are autocast too


@families
def test_gradient_checkpointing(family):
    model = make(family, dropout=0.3)
    torch.manual_seed(0)
    expected = step(model)
    checkpoint_blocks(model)
    torch.manual_seed(0)
    same(step(model), expected)


def checkpoint_blocks(model):
    """By the model's own switch; transformers has none for dual encoders, open_clip's fails on its own blocks."""
    if isinstance(model, transformers.VisionTextDualEncoderModel) or hasattr(model, "text"):
        for slot in model.mora.slots():
            slot.parent.forward = partial(checkpoint, slot.parent.forward, use_reentrant=False)
    elif hasattr(model, "set_grad_checkpointing"):
        model.set_grad_checkpointing(True)
    else:
        model.gradient_checkpointing_enable()


@families
def test_gradient_accumulation_adds_up(family):
    model = make(family, dropout=0.0)
    halves = [step(model, image=images()[i : i + 1], text=tokens()[i : i + 1]) for i in range(3)]
    whole = step(model)
    same({name: sum(half[name] for half in halves) / 3 for name in whole}, whole)


@families
def test_two_losses_and_two_backward_passes(family):
    model = make(family, dropout=0.0)
    expected = step(model)
    model.zero_grad(set_to_none=True)
    losses = [embedding.square().mean() for embedding in embed(model)]
    for loss in losses:
        loss.backward()
    same({name: parameter.grad for name, parameter in mora.adapter_parameters(model)}, expected)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("family", SITES)
def test_compiles_without_a_graph_break(family, mode):
    model = MODELS[family]()
    tower, x = model.visual if hasattr(model, "visual") else model.vision_model, images()
    blocks = tower.transformer.resblocks if hasattr(model, "visual") else tower.encoder.layers
    del blocks[2:]
    randomise(mora.patch(model, targets=("q", "k", "v", "out"), last_layers=1, dropout=0.1)).train(mode == "train")
    for dropout in (module for module in model.modules() if isinstance(module, mora.MoraLinear)):
        dropout.dropout = 0.0

    def energy(function):
        model.zero_grad(set_to_none=True)
        output = function(x)
        output = output if isinstance(output, torch.Tensor) else output.pooler_output
        # Squares of what a layer norm gives add up to a constant: their gradients would be rounding alone.
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(7))
        (output * weights).mean().backward()
        named = mora.adapter_parameters(model)
        return output.detach(), {name: p.grad.clone() for name, p in named if p.grad is not None}

    torch._dynamo.reset()
    expected, gradients = energy(tower)
    output, actual = energy(torch.compile(tower, fullgraph=True, backend="aot_eager"))
    assert_parity("output", output, expected, TABLE)
    same(actual, gradients)


def test_frozen_weights_never_move():
    model = make("open_clip", dropout=0.1)
    own = {id(parameter) for _, parameter in mora.adapter_parameters(model)}
    before = {name: p.detach().clone() for name, p in model.named_parameters() if id(p) not in own}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        step(model)
        optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)


def test_training_is_deterministic():
    def run():
        torch.manual_seed(0)
        model = mora.patch(open_clip_model()).train()
        optimizer = torch.optim.SGD([p for _, p in mora.adapter_parameters(model)], lr=0.1)
        for _ in range(3):
            step(model)
            optimizer.step()
        return mora.adapter_state_dict(model)

    first, second = run(), run()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


class Towers(torch.nn.Module):
    """Both embeddings from one forward call, as data-parallel wrappers need it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image, text):
        return self.model.encode_image(image), self.model.encode_text(text)


def worker(rank, port, gradients):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = make("open_clip", dropout=0.0)
    wrapped = DistributedDataParallel(Towers(model))
    rows = slice(2 * rank, 2 * rank + 2)
    outputs = wrapped(images(4)[rows], tokens(4)[rows])
    sum(output.square().mean() for output in outputs).backward()
    if rank == 0:
        torch.save({name: p.grad for name, p in mora.adapter_parameters(model)}, gradients)
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_equal_one_with_twice_the_batch(tmp_path):
    port = free_port()
    running = [Running(worker, rank, port, tmp_path / "gradients.pt") for rank in range(2)]
    for each in running:
        ended = each.end()
        assert ended.code == 0, ended.err[-3000:]
    actual = torch.load(tmp_path / "gradients.pt")
    same(actual, step(make("open_clip", dropout=0.0), image=images(4), text=tokens(4)))


def test_copies_train_apart():
    model = make("open_clip", dropout=0.0)
    other = copy.deepcopy(model)
    step(other)
    assert all(parameter.grad is None for _, parameter in mora.adapter_parameters(model))


@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_eval_keeps_w_eff_until_a_factor_changes(family, dtype, monkeypatch):
    """Where W_eff is kept it is built once for any number of forward calls, and again after a change that counts."""
    from mora_kernels.torch.group import Engine

    model = make(family).eval()
    built, build = [], Engine.build
    monkeypatch.setattr(Engine, "build", lambda *given, **named: built.extend(given[2]) or build(*given, **named))
    half = torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
    with torch.no_grad(), half, mora.keeping(model):
        first = embed(model)
        assert all(torch.equal(a, b) for a, b in zip(first, embed(model), strict=True))
        assert sorted(built) == [*range(16)]
        dict(mora.adapter_parameters(model))["common.1.text"].mul_(1.5)
        second = embed(model)
        assert len(built) == 16 + 8, "the upper pair of blocks again"
        assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        model.load_state_dict(MODELS[family](seed=5).state_dict())  # new frozen weights count as a change, too
        assert not torch.equal(embed(model)[0], second[0])
    expected = [embedding.clone() for embedding in embed(copy.deepcopy(model))]
    for name, actual, merged in zip(("image", "text"), expected, embed(mora.merge(model)), strict=True):
        assert_parity(name, merged, actual, TABLE)


@pytest.mark.parametrize("targets", [("q", "v"), ("q", "k", "v"), ("out",)], ids="".join)
def test_packed_projections_are_one_product_in_eval(targets):
    """q, k, v cost one product with a packed W_eff that is kept; a forward hook on one of them still sees its call."""
    model = randomise(mora.patch(open_clip_model(), targets=targets)).eval()
    expected = embed(model)  # gradients on: one product each
    with torch.no_grad():
        for name, one, other in zip(("image", "text"), embed(model), expected, strict=True):
            assert_parity(name, one, other, TABLE)
        attention, x, seen = model.visual.transformer.resblocks[3].attn, torch.randn(2, 5, 64), []
    with torch.no_grad(), mora.keeping(model):
        for name, one, other in zip(("image", "text"), embed(model), expected, strict=True):
            assert_parity(name, one, other, TABLE)
        with torch.profiler.profile() as profile:
            attention(x, x, x, need_weights=False)
        products = [event.count for event in profile.key_averages() if event.key == "aten::linear"]
        assert products == [2]  # q, k, v; out
        if targets != ("out",):
            attention.q.register_forward_hook(lambda *_: seen.append(1))
            attention(x, x, x, need_weights=False)
            assert seen == [1]


@pytest.mark.parametrize(("family", "backend"), [*((family, "torch") for family in SITES), ("open_clip", "triton")])
def test_gradient_scaler_skips_a_step_that_overflowed(family, backend):
    model = randomise(mora.patch(MODELS[family](), last_layers=1, dropout=0.0, backend=backend)).train()
    named = dict(mora.adapter_parameters(model))
    optimizer = torch.optim.AdamW(named.values(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    for overflow in (True, False):
        before = {name: parameter.detach().clone() for name, parameter in named.items()}
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = sum(embedding.float().square().mean() for embedding in embed(model))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update(2.0**4)
        assert all(torch.equal(parameter, before[name]) == overflow for name, parameter in named.items())
        assert all(torch.isfinite(parameter).all() for parameter in named.values())


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_fsdp2_shards_the_root_alone_or_blocks_before_it(one_process):
    from torch.distributed.fsdp import fully_shard

    expected = step(make("open_clip", dropout=0.0))
    for by_block in (False, True):
        model = make("open_clip", dropout=0.0)
        towers = Towers(model)
        for block in (*model.visual.transformer.resblocks, *model.transformer.resblocks) if by_block else ():
            fully_shard(block, mesh=one_process)
        # FSDP2 takes no scalar parameters, and open_clip's logit_scale is one
        fully_shard(towers, mesh=one_process, ignored_params={model.logit_scale})
        sum(output.square().mean() for output in towers(images(), tokens())).backward()
        same({name: parameter.grad.full_tensor() for name, parameter in mora.adapter_parameters(model)}, expected)
