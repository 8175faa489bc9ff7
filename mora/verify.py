"""Proof that a patched model is alive: every adapted projection runs, every adapter gets a gradient."""

from __future__ import annotations

import torch
from torch import nn

from mora.adapters import adapters_of, unwrap


def verify(model: nn.Module) -> nn.Module:
    """Run one small forward and backward pass and return `model` if every adapter took part in it.

    Both towers see random inputs of batch 2, in the model's own dtype and on its device. Gradients, the random state
    and the training mode are left as they were.

    Raises:
        ValueError: `model` is not patched.
        RuntimeError: an adapted projection never ran, or an adapter got no gradient, or one that is not finite; the
            message names them.
    """
    adapters, inner = adapters_of(model), unwrap(model)
    ran: set[str] = set()
    hooks = [
        projection.register_forward_hook(lambda *_, name=name: ran.add(name))
        for name, projection in adapters.projections()
    ]
    named = dict(adapters.named_tensors())
    devices = {p.device for p in named.values() if p.device.type == "cuda"}
    frozen = [name for name, parameter in named.items() if not parameter.requires_grad]
    if frozen:
        raise RuntimeError(f"verify: adapters that do not require grad: {', '.join(frozen)}")
    try:
        with torch.random.fork_rng(devices=[device.index or 0 for device in devices]), torch.enable_grad():
            loss = embedding_energy(inner)
            gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    dead = [name for name, _ in adapters.projections() if name not in ran]
    if dead:
        raise RuntimeError(f"verify: adapted projections that never ran: {', '.join(dead)}")
    silent = [name for name, gradient in zip(named, gradients, strict=True) if gradient is None]
    if silent:
        raise RuntimeError(f"verify: adapters without a gradient: {', '.join(silent)}")
    broken = [name for name, g in zip(named, gradients, strict=True) if g is not None and not g.isfinite().all()]
    if broken:
        raise RuntimeError(f"verify: adapters whose gradient is NaN or infinite: {', '.join(broken)}")
    return model


def embedding_energy(model: nn.Module) -> torch.Tensor:
    """Mean square of both towers' embeddings of random inputs."""
    adapters = adapters_of(model)
    weight = next(adapters.projections())[1].weight
    image = adapters.family.white_image(model)
    image = torch.randn(2, *image.shape, device=weight.device).to(weight.dtype)
    text = adapters.family.random_text(model, batch=2).to(weight.device)
    image_embedding = adapters.family.encode_image(model, image)
    text_embedding = adapters.family.encode_text(model, text)
    return image_embedding.float().square().mean() + text_embedding.float().square().mean()
