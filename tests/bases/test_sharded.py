"""FSDP2 by block: two processes, each with half of every parameter, compute what one process computes."""

import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn

import mora
from tests.mora.models import embed, images, randomise, tokens
from tests.mora.oracle import SMALL
from tests.processes import Running

ROWS = 4


class Towers(nn.Module):
    """Both embeddings by one forward call, which is the root's; the model's own is passed by."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image, text):
        return embed(self.model, image, text)


def root_of(model):
    """What is called: transformers' model itself, which builds once a call, or what stands around open_clip's."""
    return model if hasattr(model, "text_model") else Towers(model)


def call(root, image, text):
    """Two embeddings of each row."""
    if isinstance(root, Towers):
        return root(image, text)
    found = root(pixel_values=image, input_ids=text)
    return found.image_embeds[:, :5], found.text_embeds[:, :5]  # of length 1 as a whole


def patched(family):
    torch.manual_seed(0)
    targets = ("q", "v", "out", "fc1")
    return randomise(mora.patch(SMALL[family](), targets=targets, dropout=0.0)).train()


def blocks_of(model):
    return [slot.block for slot in model.mora.slots()]


def shard(model, mesh, **options):
    """The root of a model, sharded by block and then whole."""
    from torch.distributed.fsdp import fully_shard

    for block in blocks_of(model):
        fully_shard(block, mesh=mesh, **options)
    # FSDP2 takes no scalar parameters, and the scale of logits is one
    return fully_shard(root_of(model), mesh=mesh, ignored_params={model.logit_scale}, **options)


def steps(model, root, image, text):
    """Gradients by name of each of two steps, and the outputs after them."""
    named = dict(mora.adapter_parameters(model))
    optimizer = torch.optim.SGD(named.values(), 1e-2)
    found = []
    for _ in range(2):
        optimizer.zero_grad()
        sum(output.square().mean() for output in call(root, image, text)).backward()
        found.append({name: whole(parameter.grad) for name, parameter in named.items()})
        optimizer.step()
    with torch.no_grad(), mora.keeping(model):
        first = call(root, image, text)
        optimizer.step()
        for module in root.modules():
            if hasattr(module, "reshard"):  # FSDP2 gathers again only what was let go of since
                module.reshard()
        return found, first, call(root, image, text)


def whole(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "device_mesh") else tensor).clone()


def worker(rank, port, family, folder):
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    part = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
    image, text = images(batch=ROWS), tokens(batch=ROWS)
    single = patched(family)
    expected, outputs, later = steps(single, root_of(single), image, text)
    model = patched(family)
    found, first, second = steps(
        model, shard(model, mesh, reshard_after_forward=family == "hugging_face"), image[part], text[part]
    )
    for one, other in zip(found, expected, strict=True):
        for name, gradient in other.items():
            torch.testing.assert_close(one[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    for ours, theirs in ((first, outputs), (second, later)):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other[part], rtol=1e-4, atol=1e-5)
    assert not torch.equal(first[0], second[0])
    assert len({id(part) for part, _ in model.mora.group._parts.found.values()}) >= len(blocks_of(model)) - 1
    mora.save_adapter(model, folder)
    dist.barrier()
    loaded = mora.load_adapter(SMALL[family]().train(), folder).eval()
    for one, other in zip(call(root_of(loaded), image, text), later, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for verb in (mora.unpatch, mora.merge):
        with pytest.raises(ValueError, match="got a model that fully_shard was applied to, expected a whole one"):
            verb(model)
    if family == "hugging_face":
        refusals(family, mesh, image, text)
    dist.destroy_process_group()
    return 0


def refusals(family, mesh, image, text):
    """Orders that cannot work say so, on every process alike."""
    from torch.distributed.fsdp import fully_shard

    model = SMALL[family]()
    for module in model.modules():
        if type(module).__name__ in ("ResidualAttentionBlock", "CLIPEncoderLayer"):
            fully_shard(module, mesh=mesh)
    with pytest.raises(ValueError, match=r"sharded \(DTensor\), expected a whole one: patch first, then fully_shard"):
        mora.patch(model)
    model = patched(family)
    fully_shard(model.mora, mesh=mesh)
    with pytest.raises(RuntimeError, match=r"common factors are sharded.*not to model\.mora"):
        call(shard(model, mesh), image, text)


def free_port():
    import socket

    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


@pytest.mark.parametrize("family", SMALL)
def test_two_processes_by_block_equal_one(family, tmp_path):
    port = free_port()
    running = [Running(worker, rank, port, family, str(tmp_path)) for rank in range(2)]
    ended = [one.end() for one in running]
    assert [one.code for one in ended] == [0, 0], ended[0].err[-3000:] + ended[1].err[-3000:]


if __name__ == "__main__":
    sys.exit(worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]))
